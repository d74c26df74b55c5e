/* Functions of single edges and their first derivatives, each in one loop.

   In plain torch these are two dozen operations, and twice as many in their derivatives, each of which takes some
   microseconds even for few edges. REAL, MASK, F, N and C are defined as in moments.c. */

#pragma GCC optimize("tree-vectorize")

#include <math.h>
#include <stdint.h>
#include <tgmath.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 20")
#endif

typedef int64_t number;

#define HALF_PI ((REAL)1.57079632679489661923)
#define ROOT_2 ((REAL)1.41421356237309504880)
#define ROOT_1_2 ((REAL)0.70710678118654752440)
#define ROOT_1_6 ((REAL)0.40824829046386301637)

/* Least exponent, as in the definition: e⁻⁸⁰ is negligible. */
#define LEAST ((REAL)-80)

/* EXP_TERMS: terms of the series of eʳ that are needed for full precision at |r| ≤ ½ log 2. */
enum { IS_FLOAT = sizeof(REAL) == 4, MANTISSA = IS_FLOAT ? 23 : 52, EXP_TERMS = IS_FLOAT ? 7 : 13 };
#define LOG2_E ((REAL)1.44269504088896340736)
#define LN_2 0.69314718055994530942
#define LN_2_HIGH ((REAL)(IS_FLOAT ? 0.693359375 : 0.693147180369123816490)) /* few digits: its multiples are exact */
#define LN_2_LOW ((REAL)(LN_2 - (IS_FLOAT ? 0.693359375 : 0.693147180369123816490)))

/* eˣ for x ≤ 0, with x clamped to LEAST: 2ᵏ eʳ with x = k log 2 + r. Unlike exp of the library, it is vectorized by the
   compiler. Adding `ones`, whose unit in the last place is 1, rounds to the integer k and leaves it in the last bits. */
static inline REAL exponential(REAL x) {
    const REAL above = x > LEAST ? x : LEAST, ones = (REAL)(3LL << (MANTISSA - 1));
    union { REAL value; MASK bits; } shifted = {above * LOG2_E + ones}, power;
    const REAL k = shifted.value - ones, r = above - k * LN_2_HIGH - k * LN_2_LOW;
    power.value = 1;
    UNROLL for (int i = EXP_TERMS; i > 0; i--) power.value = power.value * (r * (1 / (REAL)i)) + 1;
    power.bits += shifted.bits << MANTISSA;
    return power.value;
}

/* s[ν] = exp(-½ d²) cos²(πr / 2R) with d = σ (1/r - 1/μ), up to the cutoff R */
int sensitivity(int threads, number n_edges, double cutoff, const REAL *r, const REAL *mu, const REAL *sigma, REAL *s) {
    (void)threads;
#pragma omp parallel for num_threads(threads)
    for (number e = 0; e < n_edges; e++) {
        const REAL root = r[e] <= (REAL)cutoff ? cos(HALF_PI / (REAL)cutoff * r[e]) : 0;
        const REAL envelope = root * root, inverse = 1 / r[e];
        for (int v = 0; v < N; v++) {
            const REAL d = sigma[v] * (inverse - 1 / mu[v]), x = -d * d / 2;
            s[e * N + v] = exponential(x) * envelope;
        }
    }
    return 0;
}

/* ds/dr = s (σ d / r² - π/R tan(πr / 2R)) */
int sensitivity_gradient(int threads, number n_edges, double cutoff, const REAL *r, const REAL *mu, const REAL *sigma,
                         const REAL *s, const REAL *g, REAL *dr) {
    (void)threads;
#pragma omp parallel for num_threads(threads)
    for (number e = 0; e < n_edges; e++) {
        const REAL inverse = 1 / r[e], angle = HALF_PI / (REAL)cutoff * r[e];
        REAL shells = 0, all = 0;
#pragma omp simd reduction(+ : shells, all)
        for (int v = 0; v < N; v++) {
            const REAL d = sigma[v] * (inverse - 1 / mu[v]), weight = g[e * N + v] * s[e * N + v];
            shells += -d * d / 2 > LEAST ? weight * sigma[v] * d : 0;
            all += weight;
        }
        const REAL of_envelope = r[e] <= (REAL)cutoff ? 2 * HALF_PI / (REAL)cutoff * sin(angle) / cos(angle) : 0;
        dr[e] = shells * inverse * inverse - all * of_envelope;
    }
    return 0;
}

/* 1, u, and u uᵀ - I/3 in five components, of u = x / r */
int harmonics(int threads, number n_edges, const REAL *x, const REAL *r, REAL *y) {
    (void)threads;
#pragma omp parallel for num_threads(threads)
    for (number e = 0; e < n_edges; e++) {
        const REAL a = x[3 * e] / r[e], b = x[3 * e + 1] / r[e], c = x[3 * e + 2] / r[e];
        const REAL all[9] = {1, a, b, c, ROOT_2 * a * b, ROOT_2 * b * c, ROOT_2 * a * c, ROOT_1_2 * (a * a - b * b),
                             ROOT_1_6 * (2 * c * c - a * a - b * b)};
        for (int k = 0; k < C; k++) y[e * C + k] = all[k];
    }
    return 0;
}

/* dx = (du - u <u, du>) / r, which includes the dependence of u on r */
int harmonics_gradient(int threads, number n_edges, const REAL *x, const REAL *r, const REAL *g, REAL *dx) {
    (void)threads;
#pragma omp parallel for num_threads(threads)
    for (number e = 0; e < n_edges; e++) {
        const REAL a = x[3 * e] / r[e], b = x[3 * e + 1] / r[e], c = x[3 * e + 2] / r[e];
        REAL h[9] = {0};
        for (int k = 0; k < C; k++) h[k] = g[e * C + k];
        const REAL da = h[1] + ROOT_2 * (h[4] * b + h[6] * c) + 2 * a * (ROOT_1_2 * h[7] - ROOT_1_6 * h[8]);
        const REAL db = h[2] + ROOT_2 * (h[4] * a + h[5] * c) - 2 * b * (ROOT_1_2 * h[7] + ROOT_1_6 * h[8]);
        const REAL dc = h[3] + ROOT_2 * (h[5] * b + h[6] * a) + 4 * c * ROOT_1_6 * h[8];
        const REAL along = a * da + b * db + c * dc;
        dx[3 * e] = (da - a * along) / r[e];
        dx[3 * e + 1] = (db - b * along) / r[e];
        dx[3 * e + 2] = (dc - c * along) / r[e];
    }
    return 0;
}

/* Invariants of the moments of one atom, for moments.c */

void invariants(double cusp, const REAL *restrict a, const REAL *restrict t1, const REAL *restrict t2, REAL *restrict z) {
    for (int f = 0; f < F; f++) {
        REAL sum = a[f], vector = (REAL)cusp, tensor = (REAL)cusp;
        UNROLL for (int k = 1; k < (C < 4 ? C : 4); k++) vector += a[k * F + f] * a[k * F + f];
        UNROLL for (int k = 4; k < C; k++) tensor += a[k * F + f] * a[k * F + f];
        if (C > 1) sum += t1[f] * sqrt(vector);
        if (C > 4) sum += t2[f] * sqrt(tensor);
        z[f] = sum;
    }
}

void invariants_gradient(double cusp, const REAL *restrict a, const REAL *restrict t1, const REAL *restrict t2,
                         const REAL *restrict g, REAL *restrict da) {
    for (int f = 0; f < F; f++) {
        REAL vector = (REAL)cusp, tensor = (REAL)cusp;
        UNROLL for (int k = 1; k < (C < 4 ? C : 4); k++) vector += a[k * F + f] * a[k * F + f];
        UNROLL for (int k = 4; k < C; k++) tensor += a[k * F + f] * a[k * F + f];
        const REAL of_vector = C > 1 ? g[f] * t1[f] / sqrt(vector) : 0, of_tensor = C > 4 ? g[f] * t2[f] / sqrt(tensor) : 0;
        da[f] = g[f];
        UNROLL for (int k = 1; k < (C < 4 ? C : 4); k++) da[k * F + f] = of_vector * a[k * F + f];
        UNROLL for (int k = 4; k < C; k++) da[k * F + f] = of_tensor * a[k * F + f];
    }
}
