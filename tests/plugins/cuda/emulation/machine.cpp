#include "machine.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "machine_entry.h"

extern char __start_drl_shared, __stop_drl_shared;
// So that there is such a section for a kernel without shared memory too.
static __attribute__((section("drl_shared"), used)) char anchor;

namespace drl::emulation {
namespace {

constexpr int kStack = 128 * 1024;
constexpr int kLargest = 128;  // bytes that a lane can give to its warp

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fibre {
  ucontext_t context;
  std::vector<char> stack;
  State state;
  Index index;
};

struct Warp {
  int waiting = 0;
  int size = 0;
  // A lane can be one instruction ahead of the others, when it reads what they gave last.
  alignas(16) char given[2][32][kLargest];
  int turn[32] = {};
};

std::vector<Fibre> fibres;
std::vector<Warp> warps;
ucontext_t scheduler;
Fibre* running = nullptr;
Index block;
int at_block = 0;
std::string message;
sigjmp_buf after_fault;
std::function<void()> body;

void fibre_main() {
  body();
  running->state = State::kDone;
  swapcontext(&running->context, &scheduler);
}

void wait(State state) {
  running->state = state;
  swapcontext(&running->context, &scheduler);
}

void release(int begin, int end, State waited_for) {
  for (int i = begin; i < end; ++i) {
    if (fibres[i].state != waited_for) fail("a thread waits elsewhere");
    fibres[i].state = State::kReady;
  }
}

void run_block(int threads, std::mt19937& random) {
  std::fill(&__start_drl_shared, &__stop_drl_shared, static_cast<char>(0xff));
  warps.assign(threads / 32, Warp{});
  at_block = 0;
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) {
    order[i] = i;
    Fibre& fibre = fibres[i];
    fibre.state = State::kReady;
    fibre.index = {static_cast<unsigned>(i), 0, 0};
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = fibre.stack.size();
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, fibre_main, 0);
  }
  int done = 0;
  while (done < threads) {
    std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (int i : order) {
      if (fibres[i].state != State::kReady) continue;
      moved = true;
      running = &fibres[i];
      swapcontext(&scheduler, &running->context);
      running = nullptr;
      if (fibres[i].state == State::kDone) ++done;
    }
    if (!moved) fail("threads wait for others that do not come: a barrier in a branch");
  }
}

void on_fault(int signal) {
  message = signal == SIGSEGV ? "memory outside of all arrays" : "unaligned memory";
  siglongjmp(after_fault, 1);
}

// Faults have a stack of their own, since they can come from any fibre's.
class FaultHandler {
 public:
  FaultHandler() : stack_(64 * 1024) {
    stack_t alternative = {};
    alternative.ss_sp = stack_.data();
    alternative.ss_size = stack_.size();
    sigaltstack(&alternative, &old_stack_);
    struct sigaction action = {};
    action.sa_handler = on_fault;
    action.sa_flags = SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  std::vector<char> stack_;
  stack_t old_stack_;
  struct sigaction old_segv_, old_bus_;
};

}  // namespace

const Index& current_thread() { return running->index; }
const Index& current_block() { return block; }
int lane() { return static_cast<int>(running->index.x % 32); }

void fail(const char* text) {
  message = text;
  siglongjmp(after_fault, 1);
}

void meet_block() {
  if (++at_block == static_cast<int>(fibres.size())) {
    at_block = 0;
    running->state = State::kAtBlock;
    release(0, static_cast<int>(fibres.size()), State::kAtBlock);
    return;
  }
  wait(State::kAtBlock);
}

void share_bytes(const void* own, void* all, int size) {
  if (size > kLargest) fail("an operand is too large");
  const int number = static_cast<int>(running->index.x / 32);
  Warp& warp = warps[number];
  const int mine = lane();
  const int turn = warp.turn[mine]++ % 2;
  std::memcpy(warp.given[turn][mine], own, size);
  if (warp.waiting > 0 && warp.size != size) fail("lanes of a warp in different instructions");
  warp.size = size;
  if (++warp.waiting == 32) {
    warp.waiting = 0;
    running->state = State::kAtWarp;
    release(32 * number, 32 * number + 32, State::kAtWarp);
  } else {
    wait(State::kAtWarp);
  }
  for (int i = 0; i < 32; ++i) {
    std::memcpy(static_cast<char*>(all) + i * size, warp.given[turn][i], size);
  }
}

const char* launch(const std::function<void()>& kernel, const unsigned (&grid)[3], int threads,
                   unsigned seed) {
  const FaultHandler handler;
  fibres.resize(threads);
  for (Fibre& fibre : fibres) fibre.stack.resize(kStack);
  body = kernel;
  message.clear();
  std::mt19937 random(seed);
  if (sigsetjmp(after_fault, 1) == 0) {
    for (block.z = 0; block.z < grid[2]; ++block.z) {
      for (block.y = 0; block.y < grid[1]; ++block.y) {
        for (block.x = 0; block.x < grid[0]; ++block.x) run_block(threads, random);
      }
    }
  }
  return message.c_str();
}

}  // namespace drl::emulation

extern "C" {

// `size` bytes that end where memory ends, or up to 15 bytes before that if `aligned`.
void* drl_guarded(std::size_t size, int aligned) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t room = (size + 16 + page - 1) / page * page;
  char* start = static_cast<char*>(mmap(nullptr, room + 2 * page, PROT_NONE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (start == MAP_FAILED || mprotect(start + page, room, PROT_READ | PROT_WRITE) != 0) {
    return nullptr;
  }
  char* address = start + page + room - size;
  if (aligned) address -= reinterpret_cast<std::uintptr_t>(address) % 16;
  return address;
}

void drl_release(void* address, std::size_t size) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t room = (size + 16 + page - 1) / page * page;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(address) + size + page - 1) / page *
                             page;
  munmap(reinterpret_cast<void*>(end - room - page), room + 2 * page);
}
}
