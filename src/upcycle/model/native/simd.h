/* Vectors of the machine's width by the compiler's vector extension (gcc, clang), sums in a fixed order, scratch memory.
 *
 * Every result depends on the inputs alone: sums are taken in an order that the shapes fix, whatever the alignment of
 * the arrays, so that equal inputs give equal bits. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8, STRIP = 3 }; /* a register tile of 8 x 3 vectors: 24 of 32 registers hold sums */
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 4, STRIP = 3 }; /* 12 of 16 registers */
#else
enum { LANES = 4, ROWS = 4, STRIP = 3 }; /* 128-bit vectors */
#endif
enum { CHUNK = 96, BAND = 24, PAD = 16, SHARED = 3 }; /* CHUNK: rows at a time, of the MLP, the loss, a router */

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec x) { *(vec *)p = x; }
INLINE vec splat(float s) { return s - (vec){0}; }
INLINE vec choose(ivec yes, vec a, vec b) { return (vec)((yes & (ivec)a) | (~yes & (ivec)b)); }

/* The first `count` elements of x (all, or none, where count is large or negative), and `other` for the rest. */
INLINE vec keep_first(long count, vec x, vec other) {
#if defined(__AVX512F__)
    __mmask16 mask = count <= 0 ? 0 : count >= LANES ? 0xffff : (1 << count) - 1;
    return (vec)_mm512_mask_mov_ps((__m512)other, mask, (__m512)x);
#else
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    return choose(lane < (int)count, x, other);
#endif
}

/* The larger, element by element; x where either is NaN. */
INLINE vec larger(vec bound, vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)bound, (__m512)x);
#else
    return choose(x < bound, bound, x);
#endif
}

/* A vector from memory, and one number in all places, loaded where this is written and not later: a product must not
 * wait for them. */
INLINE vec fetch(const float *p) {
#if defined(__AVX512F__)
    vec x;
    __asm__ volatile("vmovups %1, %0" : "=v"(x) : "m"(*(const vec *)p));
    return x;
#else
    return load(p);
#endif
}

INLINE vec fetch_spread(const float *p) {
#if defined(__AVX512F__)
    vec x;
    __asm__ volatile("vbroadcastss %1, %0" : "=v"(x) : "m"(*p));
    return x;
#else
    return splat(*p);
#endif
}

/* sum + a b, and sum + *a b with *a taken from memory by the same instruction. The compiler's choice of registers for
 * two dozen sums costs it moves, so it is not given one. */
INLINE vec add_product(vec sum, vec a, vec b) {
#if defined(__AVX512F__)
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#else
    return sum + a * b;
#endif
}

INLINE vec add_scaled(vec sum, const float *a, vec b) {
#if defined(__AVX512F__)
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
    return sum;
#else
    return sum + *a * b;
#endif
}

/* Keep a pointer in a register of its own, not as an offset from another, which would cost an instruction each use. */
#define in_pointer(p) __asm__("" : "+r"(p))

/* Sum and largest of a vector's elements, halving: a fixed order. */
INLINE float sum(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float part[LANES];
    store(part, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
#endif
}

INLINE float largest(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float part[LANES];
    store(part, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] = part[i] < part[i + half] ? part[i + half] : part[i];
    return part[0];
#endif
}

/* e^x to 2 units in the last place (Cephes' polynomial); below -87 e^-87, which is 1.6e-38. NaN stays. */
INLINE vec vexp(vec x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to whole numbers and leaves them in the low bits */
    vec near = larger(splat(-87.0f), x);
    vec t = near * 1.44269504f + shift;
    vec n = t - shift;
    vec r = near - n * 0.693359375f - n * -2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    vec y = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    ivec power = ((ivec)t - (ivec)splat(shift) + 127) << 23;
    return choose(x > splat(88.0f), splat(INFINITY), y * (vec)power);
#endif
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }

/* Scratch memory by slot and thread, grown as needed and kept while the process lives: a step asks for the same sizes
 * again and again. Contents are undefined, or what the last call left there. Some rows, and packed copies of the largest
 * matrices (src/upcycle/study/memory.py counts them): where they cannot be had, the process ends by name. Callers that call
 * each other use slots of their own. */
enum {
    XN, WIDE, NARROW, PACKED, PACKED2, QUERY, KEY, VALUE, SCORES, DSCORES, OUT, DQUERY, DKEY, DVALUE, STRIPPED, PANELLED,
    SLOTS
};
static float *scratch(int slot, size_t count) {
    static __thread struct { float *memory; size_t count; } slots[SLOTS];
    if (slots[slot].count < count) {
        free(slots[slot].memory);
        slots[slot].memory = aligned_alloc(64, (count * sizeof(float) + 127) / 64 * 64);
        if (!slots[slot].memory) {
            fprintf(stderr, "upcycle: out of memory: no %zu bytes for the C kernels' scratch; run fewer jobs at a time, "
                    "or lower execution.micro_batch\n", count * sizeof(float));
            abort();
        }
        slots[slot].count = count;
    }
    return slots[slot].memory;
}

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long padded(long n) { return (n + LANES - 1) / LANES * LANES; }
