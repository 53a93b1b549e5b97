#pragma once

#include <cstdint>

#include "cpu/encoder/mbconv_bfloat16_kernels.h"

namespace hyperseg::cpu {

// Values of the workspaces of one image.
int64_t filtered_size(const bfloat16::Block& block);
int64_t packed_size(const bfloat16::Block& block);

// Run a block where bfloat16_level() is not kNone. out: [images, out_height, out_width, out_channels].
void mbconv_bfloat16(const bfloat16::Block& block, uint16_t* filtered, uint16_t* packed, uint16_t* out);

}  // namespace hyperseg::cpu
