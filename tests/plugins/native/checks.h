// What the programs for the sanitizers share: instruction sets, random numbers, threads.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../../../plugins/native/src/drl_native.h"

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

inline std::mt19937 generator(7);

inline std::vector<float> draw(size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

inline size_t below(size_t limit) { return generator() % limit; }

inline void on_two_threads(void*, size_t count, drl_task task, void* state) {
  std::thread other([=] {
    for (size_t index = 1; index < count; index += 2) task(state, index);
  });
  for (size_t index = 0; index < count; index += 2) task(state, index);
  other.join();
}

// Every instruction set that this processor has, on one thread and on two.
inline std::vector<drl_execution> executions() {
  std::vector<drl_execution> found;
  for (const char* name : {"scalar", "avx2", "avx512vnni"}) {
    drl_isa isa;
    if (drl_isa_by_name(name, &isa) != DRL_OK) continue;
    found.push_back({isa, nullptr, nullptr});
    found.push_back({isa, on_two_threads, nullptr});
  }
  return found;
}

// Memory exactly as large as asked for, so that one byte too many is noticed.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {}
  drl_workspace workspace() { return {bytes_.data(), bytes_.size()}; }

 private:
  std::vector<unsigned char> bytes_;
};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
