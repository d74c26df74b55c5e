/* Products of many rows with a matrix of weights.

   REAL, MASK and F are defined as in moments.c. */

#include "products.h"

/* Rows of the matrix used at a time, which stay in a core's own cache; rows that a thread takes at a time. */
enum { DEPTH = 128, BLOCK = 64 };

/* Whether these loops are faster than torch's products: MKL uses half of the vector width of AMD processors with
   AVX-512. */
int dense_is_faster(void) {
#if defined(__AVX512F__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

/* c[r] (+)= a[r]·b of up to BLOCK rows, b being (depth, F) */
PART void block(number rows, number depth, const REAL *a, const REAL *b, REAL *c, number step, int add) {
    for (number k = 0; k < depth; k += DEPTH) {
        const int count = depth - k < DEPTH ? (int)(depth - k) : DEPTH, more = add || k;
        for (number first = 0; first < rows; first += ROWS) {
            const int left = rows_left(rows, first);
            factor_pair pair = {.b = b + k * F, .step = 1, .count = count};
            REAL part[ROWS][F], *to[ROWS];
            for (int r = 0; r < left; r++) {
                pair.a[r] = a + (first + r) * depth + k;
                to[r] = more ? part[r] : c + (first + r) * step;
            }
            WITH_ROWS(left, product(R, 1, &pair, to))
            for (int r = 0; more && r < left; r++) {
                REAL *sum = c + (first + r) * step;
#pragma omp simd
                for (int f = 0; f < F; f++) sum[f] += part[r][f];
            }
        }
    }
}

/* c[r][g][f] (+)= Σ_k a[r][k] b[g][k][f] */
int dense(int threads, number n_rows, number depth, number groups, number add, const REAL *a, const REAL *b, REAL *c) {
    (void)threads;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (number first = 0; first < n_rows; first += BLOCK)
        for (number g = 0; g < groups; g++)
            block(n_rows - first < BLOCK ? n_rows - first : BLOCK, depth, a + first * depth, b + g * depth * F,
                  c + (first * groups + g) * F, groups * F, (int)add);
    return 0;
}
