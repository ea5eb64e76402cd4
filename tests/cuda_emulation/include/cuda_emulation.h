// Executes CUDA kernels on the CPU, so that their arithmetic, indexing and synchronisation are tested without a GPU.
//
// The .cu files compile as C++, unmodified, with this file in place of <cuda_runtime.h>. A launch runs one block after
// the other. Each thread of a block is a fiber: a stack of its own and a function that swaps stacks. A fiber
// gives up the processor at a barrier or a shuffle only, and is resumed when those it waits for have come:
//
//   __syncthreads      when every thread of the block waits at the same one;
//   __shfl_xor_sync    when all 32 lanes of the warp wait at the same one, with the same offset and width.
//
// If nobody can go on, the launch throws, and tells who waits where: a thread that has returned, a barrier in a branch,
// a lane that skipped a shuffle. A device would hang there, or go on with wrong numbers.
//
// The scheduler is unfair on purpose: it lets one warp run until it must wait, then the next. A warp that is not held
// back by a barrier overtakes the others by as much as it can, which shows in the numbers. The order of the warps, of
// the lanes and of the blocks changes from launch to launch: ascending, descending, shuffled.
//
// Not emulated: time, caches and the order in which other warps see writes; CUDA's own exp, expm1 and log1p (those of
// the host's C library take their place); shuffles of less than a warp.
//
// x86-64 Linux, GCC or Clang. One launch at a time: a lock sees to it.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATION_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATION_ASAN 1
#endif
#endif
#ifdef CUDA_EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
  unsigned x, y, z;
  // Wider than CUDA's, so that a number that does not fit is refused rather than cut.
  dim3(int64_t x = 1, int64_t y = 1, int64_t z = 1) : x(unsigned(x)), y(unsigned(y)), z(unsigned(z)) {
    if ((x | y | z) >> 32) throw std::runtime_error("CUDA emulation: a grid or block beyond 32 bits");
  }
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// Keeps the registers that a function must preserve on the running stack, notes where it ends, goes on with another.
extern "C" void cuda_emulation_swap(void** save_stack_here, void* next_stack);
__asm__(
    ".text\n"
    ".weak cuda_emulation_swap\n"
    ".hidden cuda_emulation_swap\n"
    ".type cuda_emulation_swap, @function\n"
    "cuda_emulation_swap:\n"
    "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
    "  ret\n"
    ".size cuda_emulation_swap, . - cuda_emulation_swap\n");

namespace cuda_emulation {

constexpr unsigned kLanes = 32, kMaxThreads = 1024;
constexpr size_t kStackBytes = 128 << 10, kGuardBytes = 4096;

enum State { kReady, kAtShuffle, kAtBarrier, kReturned };

struct Thread {
  State state;
  void* stack_pointer;
  const char* where;  // of the barrier or shuffle that it waits at
  int offset, width;
  uint64_t offered, received;
};

// What a process has of it: every launch uses the same stacks.
struct Device {
  std::mutex lock;
  char* stacks = nullptr;
  Thread threads[kMaxThreads];
  unsigned number = 0, running = 0;
  void* scheduler = nullptr;  // where it goes on when a fiber waits
  void (*call)(const void*) = nullptr;
  const void* kernel = nullptr;
  uint64_t launches = 0;
  std::mt19937 dice;
#ifdef CUDA_EMULATION_ASAN
  const void* host_stack = nullptr;
  size_t host_stack_size = 0;
#endif
};
inline Device device;

inline char* stack_of(unsigned thread) { return device.stacks + thread * (kStackBytes + kGuardBytes) + kGuardBytes; }

// From a fiber to the scheduler. `last`: never to come back.
inline void wait(bool last = false) {
  Thread& self = device.threads[device.running];
#ifdef CUDA_EMULATION_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, device.host_stack, device.host_stack_size);
#endif
  (void)last;
  cuda_emulation_swap(&self.stack_pointer, device.scheduler);
#ifdef CUDA_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(fake, &device.host_stack, &device.host_stack_size);
#endif
}

// Where a new fiber begins.
inline void begin() {
#ifdef CUDA_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &device.host_stack, &device.host_stack_size);
#endif
  device.call(device.kernel);
  device.threads[device.running].state = kReturned;
  wait(true);
  __builtin_unreachable();
}

inline void create(unsigned thread) {
  char* stack = stack_of(thread);
#ifdef CUDA_EMULATION_ASAN
  __asan_unpoison_memory_region(stack, kStackBytes);  // frames of the thread that had it before
#endif
  // As cuda_emulation_swap leaves a stack: six registers, then the address to go on at; aligned as after a call.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(stack + kStackBytes) - 8;
  std::fill(top, top + 8, 0);
  top[6] = reinterpret_cast<uintptr_t>(&begin);
  device.threads[thread] = Thread{kReady, top, nullptr, 0, 0, 0, 0};
}

// From the scheduler to a fiber, until that one waits or has returned.
inline void resume(unsigned thread) {
  device.running = thread;
  threadIdx = dim3(thread, 0, 0);
#ifdef CUDA_EMULATION_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_of(thread), kStackBytes);
#endif
  cuda_emulation_swap(&device.scheduler, device.threads[thread].stack_pointer);
#ifdef CUDA_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline bool wait_together(const Thread& a, const Thread& b) {
  return a.state == b.state && a.where == b.where && a.offset == b.offset && a.width == b.width;
}

// Hands over the values of a shuffle for which the whole warp has come.
inline bool exchange(unsigned first) {
  if (first + kLanes > device.number) return false;
  Thread* lanes = device.threads + first;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (lanes[lane].state != kAtShuffle || !wait_together(lanes[lane], lanes[0])) return false;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned other = lane ^ static_cast<unsigned>(lanes[0].offset);
    // Beyond the group of `width` lanes, a lane gets its own value.
    const bool inside = other / static_cast<unsigned>(lanes[0].width) == lane / static_cast<unsigned>(lanes[0].width);
    lanes[lane].received = lanes[inside ? other : lane].offered;
    lanes[lane].state = kReady;
  }
  return true;
}

inline bool release_barrier() {
  for (unsigned thread = 0; thread < device.number; ++thread) {
    const Thread& other = device.threads[thread];
    if (other.state != kAtBarrier || !wait_together(other, device.threads[0])) return false;
  }
  for (unsigned thread = 0; thread < device.number; ++thread) device.threads[thread].state = kReady;
  return true;
}

[[noreturn]] inline void stuck(const char* kernel) {
  std::map<std::string, std::vector<unsigned>> groups;
  for (unsigned thread = 0; thread < device.number; ++thread) {
    const Thread& t = device.threads[thread];
    std::string what = "returned";
    if (t.state == kAtBarrier) what = std::string("wait at the barrier ") + t.where;
    if (t.state == kAtShuffle) {
      what = std::string("wait at the shuffle ") + t.where + " (offset " + std::to_string(t.offset) + ", width " +
             std::to_string(t.width) + ")";
    }
    groups[what].push_back(thread);
  }
  std::string message = "CUDA emulation: no thread can go on in block (" + std::to_string(blockIdx.x) + ", " +
                        std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ") of " + kernel;
  for (const auto& group : groups) {
    message += "; " + std::to_string(group.second.size()) + " threads, the first " + std::to_string(group.second[0]) +
               ", " + group.first;
  }
  throw std::runtime_error(message);
}

inline void run_block(const char* kernel) {
  std::vector<unsigned> warps((device.number + kLanes - 1) / kLanes);
  for (unsigned w = 0; w < warps.size(); ++w) warps[w] = w;
  const unsigned schedule = device.launches % 3;
  if (schedule == 1) std::reverse(warps.begin(), warps.end());
  for (unsigned thread = 0; thread < device.number; ++thread) create(thread);
  do {
    if (schedule == 2) std::shuffle(warps.begin(), warps.end(), device.dice);
    for (const unsigned warp : warps) {
      do {
        const unsigned turn = schedule == 2 ? device.dice() : schedule == 1 ? kLanes - 1 : 0;
        for (unsigned n = 0; n < kLanes; ++n) {
          const unsigned thread = warp * kLanes + (n ^ turn) % kLanes;
          if (thread < device.number && device.threads[thread].state == kReady) resume(thread);
        }
      } while (exchange(warp * kLanes));  // on, as far as this warp comes
    }
  } while (release_barrier());
  for (unsigned thread = 0; thread < device.number; ++thread) {
    if (device.threads[thread].state != kReturned) stuck(kernel);
  }
}

inline const char* variable(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

// Every launch as a line "blocks threads kernel" in the file $CUDA_EMULATION_LOG; with $CUDA_EMULATION_RUN=0, no more.
inline void write_log(const char* kernel, dim3 grid, dim3 block) {
  static std::ofstream log(variable("CUDA_EMULATION_LOG", "/dev/null"), std::ios::app);
  log << uint64_t(grid.x) * grid.y * grid.z << ' ' << block.x << ' ' << kernel << std::endl;
}

inline void launch(const char* kernel, dim3 grid, dim3 block) {
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x >= 1u << 31 || grid.y > 65535 || grid.z > 65535 || block.x < 1 ||
      block.x > kMaxThreads || block.y != 1 || block.z != 1) {
    throw std::runtime_error(std::string("CUDA emulation: no device takes this grid or block, of ") + kernel);
  }
  if (device.stacks == nullptr) {
    const size_t bytes = kMaxThreads * (kStackBytes + kGuardBytes);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    device.stacks = static_cast<char*>(memory);
    for (unsigned thread = 0; thread < kMaxThreads; ++thread) mprotect(stack_of(thread) - kGuardBytes, kGuardBytes, 0);
  }
  write_log(kernel, grid, block);
  if (variable("CUDA_EMULATION_RUN", "1")[0] == '0') return;
  device.number = block.x;
  ++device.launches;
  gridDim = grid;
  blockDim = block;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  for (uint64_t n = 0; n < blocks; ++n) {
    // Ascending, descending, or from the middle round.
    const unsigned schedule = device.launches % 3;
    const uint64_t b = schedule == 0 ? n : schedule == 1 ? blocks - 1 - n : (n + blocks / 2) % blocks;
    blockIdx = dim3(unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y));
    run_block(kernel);
  }
}

inline void barrier(const char* where) {
  Thread& self = device.threads[device.running];
  self.state = kAtBarrier;
  self.where = where;
  self.offset = self.width = 0;
  wait();
}

template <typename T>
T shuffle_xor(const char* where, unsigned mask, T value, int offset, int width) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a register or two");
  if (mask != 0xffffffffu || width < 1 || width > 32 || (width & (width - 1)) != 0) std::abort();  // not emulated
  Thread& self = device.threads[device.running];
  std::memcpy(&self.offered, &value, sizeof(T));
  self.state = kAtShuffle;
  self.where = where;
  self.offset = offset;
  self.width = width;
  wait();
  std::memcpy(&value, &self.received, sizeof(T));
  return value;
}

}  // namespace cuda_emulation

#define CUDA_EMULATION_TEXT_(x) #x
#define CUDA_EMULATION_TEXT(x) CUDA_EMULATION_TEXT_(x)
#define CUDA_EMULATION_HERE __FILE__ ":" CUDA_EMULATION_TEXT(__LINE__)
#define __syncthreads() ::cuda_emulation::barrier(CUDA_EMULATION_HERE)
#define __shfl_xor_sync(mask, value, offset, width) \
  ::cuda_emulation::shuffle_xor(CUDA_EMULATION_HERE, mask, value, offset, width)

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // there is one block at a time

template <typename T>
inline T __ldg(const T* address) {
  return *address;
}

// As far from the quotient as a device may be.
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float __fdividef(float a, float b) { return a / b * (1 + 0x1p-22f); }
inline float rsqrt(float v) { return 1 / std::sqrt(v); }
inline double rsqrt(double v) { return 1 / std::sqrt(v); }

// The part of CUDA's runtime that launches kernels.
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::lock_guard<std::mutex> guard(cuda_emulation::device.lock);
  auto call = [&] { kernel(arguments...); };
  cuda_emulation::device.call = [](const void* c) { (*static_cast<const decltype(call)*>(c))(); };
  cuda_emulation::device.kernel = &call;
  cuda_emulation::launch(__PRETTY_FUNCTION__, config->gridDim, config->blockDim);
  return cudaSuccess;
}
