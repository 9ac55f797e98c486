// What the tests of kernels share: random shapes and numbers, and how a kernel's outputs are compared with the scalar kernel's.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "dispatch.h"

constexpr size_t GUARD = 256, SLACK = 64;  // bytes around outputs; bytes that may be read behind codes

int64_t between(int64_t lo, int64_t hi);
int number(int lo, int hi);
bool once_in(int n);
double real(double lo, double hi);
float power(double lo, double hi);
int one_of(std::initializer_list<int> values);
int some_channels();
void some_bounds(int32_t &zero, int32_t &lo, int32_t &hi);
hasten::Share some_share(int rows, int blocks);
hasten::Strides some_strides(int w, int c);
size_t extent(hasten::Strides s, int h, int w, int c);  // elements from the first to behind the last

// Exactly `size` elements of the heap: one more is beyond what a sanitizer allows.
template <class T>
struct Exactly {
    std::unique_ptr<T[]> at;
    size_t size;
    explicit Exactly(size_t n) : at(new T[n ? n : 1]), size(n) {}
    T *data() { return at.get(); }
    T &operator[](size_t i) { return at[i]; }
};

Exactly<uint8_t> codes(size_t n);
Exactly<float> floats(size_t n);
Exactly<float> magnitudes(Exactly<float> &of);

// Whether a kernel may give `got` for output i where the scalar one gives `expected`: asked where their bytes differ.
template <class T>
using May = std::function<bool(size_t i, T expected, T got)>;

struct Test {
    std::vector<hasten::Row> rows;
    hasten::Kernel scalar;

    // Outputs are `count` numbers from the first on, gaps between pixels included. What the scalar kernel leaves as it was, the others must leave, too.
    template <class T>
    void compare(const void *arguments, const void *const *in, size_t count, hasten::Share share, const May<T> &may = {}) const;
    // Bit for bit, `count` bytes.
    void operator()(const void *arguments, const void *const *in, size_t count, hasten::Share share) const { compare<uint8_t>(arguments, in, count, share); }
    // The scalar kernel's outputs alone, with other arguments: what they would be without an activation, or how large the sums are.
    Exactly<float> outputs(const void *arguments, const void *const *in, size_t count, hasten::Share share) const;
};

extern std::string what;  // the case that runs, for people

template <class... Values>
void tell(const char *format, Values... values) {
    char buffer[512];
    std::snprintf(buffer, sizeof buffer, format, values...);
    what = buffer;
}

// ---- where a kernel on floats may differ

constexpr double LAST_BIT = 1.0 / (1 << 23);

// Of activations, relative to max(1, |result|): the vectors' own expansions of exp, erf and tanh.
constexpr double FUNCTIONS = 4e-7;

// Of a sum of n products, relative to the sum of their magnitudes: another order and fused products; errors grow like the root of their number.
inline double of_sums(double n) { return LAST_BIT * (4 + std::sqrt(n)); }

// What activation(value ± slack) may be; NaN, if that is among it.
struct Range {
    double least = INFINITY, most = -INFINITY;
    bool nan = false;
    Range(int activation, float a, float b, double value, double slack);
    bool holds(float v) const { return std::isnan(v) ? nan : v >= least && v <= most; }
};

int some_activation();
void some_parameters(int activation, float &a, float &b);

// ---- the tests: random arguments for one kind of kernel

struct Tested {
    hasten::Operator op;
    const char *types;
    void (*draw)(const Test &);
};
extern const std::vector<Tested> TESTED_ON_FLOATS;
