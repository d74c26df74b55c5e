/* Vector types, and the matrix product used in moments.c and dense.c.

   REAL, MASK (an integer of the same width) and F are defined on the compiler's command line, so that all inner loops
   have constant lengths and sums stay in registers. */

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, MOST_VECTORS = 4 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, MOST_VECTORS = 2 };
#else
enum { VECTOR_BYTES = 16, MOST_VECTORS = 4 };
#endif

/* LANES: the widest vector not longer than a row; DOT_LANES: the widest vector whose length divides that of a row. */
#define HALF_IF(wrong, lanes) ((wrong) && (lanes) > 1 ? (lanes) / 2 : (lanes))
enum {
    NATIVE = VECTOR_BYTES / (int)sizeof(REAL),
    L1 = HALF_IF(NATIVE > F, NATIVE), L2 = HALF_IF(L1 > F, L1), L3 = HALF_IF(L2 > F, L2), LANES = HALF_IF(L3 > F, L3),
    D1 = HALF_IF(F % NATIVE, NATIVE), D2 = HALF_IF(F % D1, D1), D3 = HALF_IF(F % D2, D2), DOT_LANES = HALF_IF(F % D3, D3),
    VECTORS = F / LANES < MOST_VECTORS ? F / LANES : MOST_VECTORS,
    STRIP = VECTORS * LANES,
    STRIPS = (F + STRIP - 1) / STRIP,
    ROWS = 4, /* rows that share each load of the other factor */
};
typedef REAL vec __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef REAL dot_vec __attribute__((vector_size(DOT_LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef REAL four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#define UNROLL _Pragma("unroll")
#else
typedef MASK four_numbers __attribute__((vector_size(4 * sizeof(MASK))));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (four_numbers){i, j, k, l})
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))
#define PART static __attribute__((noinline)) /* not inlined, so that each has enough registers */

/* Evaluates `call` with R, the number of rows, as a constant from 1 to ROWS. */
#define WITH_ROWS(rows, call)                                  \
    switch (rows) {                                            \
    case 1: { enum { R = 1 }; call; break; }                   \
    case 2: { enum { R = 2 }; call; break; }                   \
    case 3: { enum { R = 3 }; call; break; }                   \
    default: { enum { R = ROWS }; call; }                      \
    }

typedef int64_t number;

typedef struct {
    const REAL *a[ROWS]; /* a[r][k·step] */
    const REAL *b;       /* b[k·F + f] */
    int step, count;
} factor_pair;

/* c[r][f] = Σ over pairs and k of a[r][k·step] b[k·F + f] */
INLINE void product(const int rows, const int n_pairs, const factor_pair *pairs, REAL *const *c) {
    for (int strip = 0; strip < STRIPS; strip++) {
        const int f = strip + 1 < STRIPS ? strip * STRIP : F - STRIP; /* the last may overlap with the previous one */
        vec sum[ROWS][VECTORS];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] = (vec){0};
        UNROLL for (int i = 0; i < n_pairs; i++) {
            const REAL *a[ROWS], *b = pairs[i].b + f;
            UNROLL for (int r = 0; r < rows; r++) a[r] = pairs[i].a[r];
            const int count = pairs[i].count, step = pairs[i].step;
            for (int k = 0; k < count; k++) {
                vec row[VECTORS];
                UNROLL for (int v = 0; v < VECTORS; v++) row[v] = *(const vec *)(b + k * F + v * LANES);
                UNROLL for (int r = 0; r < rows; r++) {
                    const REAL factor = a[r][k * step];
                    UNROLL for (int v = 0; v < VECTORS; v++) sum[r][v] += factor * row[v];
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < VECTORS; v++) *(vec *)(c[r] + f + v * LANES) = sum[r][v];
    }
}

INLINE int rows_left(number count, number first) { return count - first < ROWS ? (int)(count - first) : ROWS; }
