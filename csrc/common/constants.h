#pragma once

namespace hyperseg {

// Whether the constants of this thread's calls are ready: the parameters of operators (weights, biases, generators,
// scales; never a tensor that another operator makes, such as the weights of patches) were written and complete before
// the caller's first launch. A kernel may then read them before the previous kernel of the stream has finished: see
// stage_constants_and_wait in cuda/device/device.cuh. Off by default. A host that copies a parameter first, because of
// its strides for instance, must not pass this on to the kernel that reads the copy.
bool constants_ready();

// Set it for this thread; return what it was.
bool set_constants_ready(bool ready);

}  // namespace hyperseg
