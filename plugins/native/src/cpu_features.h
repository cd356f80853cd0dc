// Which instruction sets this processor and its operating system offer.
#pragma once

#include "kernels.h"

namespace drl {

// The kernels of an instruction set, or null where processor or build lack it.
const Kernels* kernels_for(drl_isa isa);

}  // namespace drl
