// What the kernels offer to the host code: one struct of functions per pair of storage types, each pair compiled in a
// file of its own. No PyTorch headers here, which take the CUDA compiler longer than the kernels.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../problem.h"

namespace s6la {
namespace cuda {

// Arithmetic is float unless the storage is double.
template <typename State>
using ComputeOf = std::conditional_t<std::is_same<State, double>::value, double, float>;

// Numbers that a thread of the map kernels handles side by side: 16 bytes of them.
template <typename Compute>
constexpr int kVec = 16 / sizeof(Compute);

constexpr int kWarp = 32;
constexpr int kMapThreads = 256;  // of a block at most
constexpr int kTokenThreads = 256;

struct Queue {
  cudaStream_t stream;
  int multiprocessors;
};

// The gradients of a map.
struct MapGradients {
  Operand x, dt, B, h0;
};

// How one step of a map is cut up. A block has `threads` threads: `lanes` (a power of two) side by side along the inner
// axis, kVec numbers each, times as many rows as that leaves.
struct MapGrid {
  int lanes, threads;
  int64_t chunks;  // of the channels, where they do not fit into one block
  int64_t tiles;   // blocks of pixels, of all maps of the batch
  int64_t blocks;  // per chunk; in the backward pass perhaps fewer than tiles
};

struct TokenGrid {
  int lanes;       // of a channel, a power of two
  int64_t blocks;  // of kTokenThreads / lanes channels
  int64_t chunks;  // of the state's numbers, lanes each
  int64_t splits;  // of the batch
};

// Where the backward pass of tokens leaves its partial sums; of the compute type.
struct TokenGradients {
  Operand h0;
  Operand x, dt;             // the results, in the inputs' type, where there is one chunk
  void *x_parts, *dt_parts;  // else (chunks, steps, batches, D)
  void* A_parts;             // (splits, D, N)
  void* bias_parts;          // (splits, chunks, D)
  void* B_parts;             // (blocks, steps, batches, N)
};

// Whether the kernels divide by the root mean square themselves: all channels of a pixel must fit into one block.
template <typename Compute>
constexpr bool normalizes(int64_t channels) {
  return channels <= kWarp * kVec<Compute>;
}

template <typename State, typename Input>
struct Kernels {
  using Compute = ComputeOf<State>;
  // One step of a map. sums: (grid.blocks, 2, channels), or null.
  static cudaError_t map_forward(const Problem& p, const MapGrid& grid, Queue queue);
  static cudaError_t map_backward(const Problem& p, const MapGradients& out, void* sums, const MapGrid& grid,
                                  Queue queue);
  static cudaError_t token_forward(const Problem& p, const TokenGrid& grid, Queue queue);
  static cudaError_t token_backward(const Problem& p, const TokenGradients& out, const TokenGrid& grid, Queue queue);
};

// Any number of steps of a map, everything stored in the compute type. sums: (2, batches, rows, inner).
template <typename Compute>
struct ScanKernels {
  static cudaError_t forward(const Problem& p, Queue queue);
  static cudaError_t backward(const Problem& p, const MapGradients& out, void* sums, Queue queue);
};

}  // namespace cuda
}  // namespace s6la
