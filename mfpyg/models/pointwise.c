/* Functions of single edges and of single atoms, with their first derivative by positions, each in one loop.

   In plain torch these are two dozen operations with twice as many in their derivatives, each of which takes some
   microseconds, however few edges there are. REAL, F, N and C are given to the compiler, as in moments.c. */

#pragma GCC optimize("tree-vectorize", "no-math-errno")

#include <math.h>
#include <stdint.h>
#include <tgmath.h>

typedef int64_t number;

#define HALF_PI ((REAL)1.57079632679489661923)
#define ROOT_2 ((REAL)1.41421356237309504880)
#define ROOT_1_2 ((REAL)0.70710678118654752440)
#define ROOT_1_6 ((REAL)0.40824829046386301637)

/* Below e⁻⁸⁰ nothing is felt, as in the definition. */
#define LEAST ((REAL)-80)

/* s[ν] = exp(-½ d²) cos²(πr / 2R) with d = σ (1/r - 1/μ), up to the cutoff R */
int sensitivity(int threads, number n_edges, double cutoff, const REAL *r, const REAL *mu, const REAL *sigma, REAL *s) {
    (void)threads;
#pragma omp parallel for num_threads(threads)
    for (number e = 0; e < n_edges; e++) {
        const REAL root = r[e] <= (REAL)cutoff ? cos(HALF_PI / (REAL)cutoff * r[e]) : 0;
        const REAL envelope = root * root, inverse = 1 / r[e];
        for (int v = 0; v < N; v++) {
            const REAL d = sigma[v] * (inverse - 1 / mu[v]), x = -d * d / 2;
            s[e * N + v] = exp(x > LEAST ? x : LEAST) * envelope;
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

/* dx = (du - u <u, du>) / r: what r does is in it */
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

/* z[f] = a[0][f] + t1[f] √(Σ a[1…3][f]² + cusp) + t2[f] √(Σ a[4…8][f]² + cusp) */
int invariants(int threads, number n_atoms, double cusp, const REAL *a, const REAL *t1, const REAL *t2, REAL *z) {
    (void)threads;
#pragma omp parallel for num_threads(threads)
    for (number i = 0; i < n_atoms; i++)
        for (int f = 0; f < F; f++) {
            const REAL *m = a + i * C * F + f;
            REAL sum = m[0], vector = (REAL)cusp, tensor = (REAL)cusp;
            for (int k = 1; k < (C < 4 ? C : 4); k++) vector += m[k * F] * m[k * F];
            for (int k = 4; k < C; k++) tensor += m[k * F] * m[k * F];
            if (C > 1) sum += t1[f] * sqrt(vector);
            if (C > 4) sum += t2[f] * sqrt(tensor);
            z[i * F + f] = sum;
        }
    return 0;
}

int invariants_gradient(int threads, number n_atoms, double cusp, const REAL *a, const REAL *t1, const REAL *t2,
                        const REAL *g, REAL *da) {
    (void)threads;
#pragma omp parallel for num_threads(threads)
    for (number i = 0; i < n_atoms; i++)
        for (int f = 0; f < F; f++) {
            const REAL *m = a + i * C * F + f, h = g[i * F + f];
            REAL *dm = da + i * C * F + f, vector = (REAL)cusp, tensor = (REAL)cusp;
            for (int k = 1; k < (C < 4 ? C : 4); k++) vector += m[k * F] * m[k * F];
            for (int k = 4; k < C; k++) tensor += m[k * F] * m[k * F];
            const REAL of_vector = C > 1 ? h * t1[f] / sqrt(vector) : 0, of_tensor = C > 4 ? h * t2[f] / sqrt(tensor) : 0;
            dm[0] = h;
            for (int k = 1; k < (C < 4 ? C : 4); k++) dm[k * F] = of_vector * m[k * F];
            for (int k = 4; k < C; k++) dm[k * F] = of_tensor * m[k * F];
        }
    return 0;
}
