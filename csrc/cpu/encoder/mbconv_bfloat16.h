#pragma once

#include <cstdint>

#include "cpu/encoder/mbconv_amx.h"

namespace hyperseg::cpu {

// Values of the workspaces of one image.
int64_t filtered_size(const amx::Block& block);
int64_t packed_size(const amx::Block& block);

// Run a block where has_amx(). out: [images, out_height, out_width, out_channels].
void mbconv_bfloat16(const amx::Block& block, uint16_t* filtered, uint16_t* packed, uint16_t* out);

}  // namespace hyperseg::cpu
