/* Moments of the messages between atoms, and their first and second derivatives, on a CPU.

   With edges e from a source j to a target i, ν = 1 … N sensitivities, c = 1 … C tensor components and F features,

       m_e[f] = Σ_ν s_e[ν] q_j[ν][f]          message
       A_i[c][f] = Σ_e y_e[c] m_e[f]          moments

   Of the scalar Σ_i <A_i, g_i> = Σ_e <m_e, p_e>, with p_e[f] = Σ_c y_e[c] g_i[c][f], the derivatives are

       ds_e[ν] = <p_e, q_j[ν]>,   dy_e[c] = <m_e, g_i[c]>,   dq_j[ν] = Σ_e s_e[ν] p_e

   and of Σ <hs, ds> + <hy, dy> + <hq, dq>, with the tangents hm = hs·q + s·hq of m and hp = hy·g of p,

       ds = <hp, q> + <p, hq>,   dy = <hm, g>,   dq = Σ s hp + hs p,   dg = Σ y hm + hy m.

   No array of F numbers per edge is allocated: messages exist for one chunk of targets at a time, pulls p for the edges
   of one source. Edges are numbered in the order of their targets. Each result is written by one thread in a fixed
   order, so that it does not depend on the number of threads.

   REAL, MASK (an integer of the same width), F, N and C are defined on the compiler's command line, so that all inner
   loops have constant lengths and sums stay in registers. */

#include "products.h"

typedef struct {
    number n_atoms, n_chunks;
    const number *chunks;     /* first target of each chunk, (n_chunks + 1) */
    const number *target_ptr; /* first edge of each target, (n_atoms + 1) */
    const number *by_chunk;   /* edges sorted by chunk, then source */
    const number *source_ptr; /* first edge of each source in by_source, (n_atoms + 1) */
    const number *by_source;  /* edges sorted by source */
    const number *source, *target;
    number closed; /* whether the sources of a chunk are its targets */
    const number *kind; /* row of q of each atom, (n_atoms); null if q has one row per atom */
} graph;

INLINE const REAL *of_source(const graph *p, const REAL *q, number j) { return q + (p->kind ? p->kind[j] : j) * N * F; }

/* Parameters of the invariants, z[f] = a[0][f] + t1[f] √(Σ a[1…3][f]² + cusp) + t2[f] √(Σ a[4…8][f]² + cusp);
   pointwise.c implements them and their derivative for one atom. */
typedef struct { const REAL *t1, *t2; double cusp; } scales;

extern __attribute__((visibility("hidden"))) void invariants(double, const REAL *, const REAL *, const REAL *, REAL *);
extern __attribute__((visibility("hidden"))) void invariants_gradient(double, const REAL *, const REAL *, const REAL *,
                                                                     const REAL *, REAL *);

/* Products */

INLINE REAL total(dot_vec x) {
    REAL sum = 0;
    UNROLL for (int l = 0; l < DOT_LANES; l++) sum += x[l];
    return sum;
}

INLINE four folded(dot_vec x) {
    union { dot_vec whole; four part[DOT_LANES < 4 ? 1 : DOT_LANES / 4]; } u = {x};
    four sum = u.part[0];
    UNROLL for (int i = 1; i < DOT_LANES / 4; i++) sum += u.part[i];
    return sum;
}

INLINE void four_totals(const dot_vec *x, REAL *out) {
    const four a = folded(x[0]), b = folded(x[1]), c = folded(x[2]), d = folded(x[3]);
    const four ab = SHUFFLE(a, b, 0, 4, 1, 5) + SHUFFLE(a, b, 2, 6, 3, 7);
    const four cd = SHUFFLE(c, d, 0, 4, 1, 5) + SHUFFLE(c, d, 2, 6, 3, 7);
    *(four *)out = SHUFFLE(ab, cd, 0, 1, 4, 5) + SHUFFLE(ab, cd, 2, 3, 6, 7);
}

/* c[r][q] = Σ over pairs of Σ_f a[pair][r][f] b[pair][q·F + f], for at most four q */
INLINE void few_dots(const int rows, const int columns, const int n_pairs, const REAL *const (*a)[ROWS],
                     const REAL *const *b, REAL *const *c) {
    dot_vec sum[ROWS][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int q = 0; q < columns; q++) sum[r][q] = (dot_vec){0};
    UNROLL for (int i = 0; i < n_pairs; i++)
        for (int f = 0; f < F; f += DOT_LANES) {
            dot_vec x[ROWS];
            UNROLL for (int r = 0; r < rows; r++) x[r] = *(const dot_vec *)(a[i][r] + f);
            UNROLL for (int q = 0; q < columns; q++) {
                const dot_vec y = *(const dot_vec *)(b[i] + q * F + f);
                UNROLL for (int r = 0; r < rows; r++) sum[r][q] += x[r] * y;
            }
        }
    UNROLL for (int r = 0; r < rows; r++) {
        if (columns == 4 && DOT_LANES >= 4) four_totals(sum[r], c[r]);
        else UNROLL for (int q = 0; q < columns; q++) c[r][q] = total(sum[r][q]);
    }
}

INLINE void dots(const int rows, const int columns, const int n_pairs, const REAL *const (*a)[ROWS],
                 const REAL *const *b, REAL *const *c) {
    for (int q = 0; q < columns; q += 4) {
        const REAL *bq[2] = {b[0] + q * F, n_pairs > 1 ? b[1] + q * F : 0};
        REAL *cq[ROWS];
        UNROLL for (int r = 0; r < rows; r++) cq[r] = c[r] + q;
        if (columns - q >= 4) few_dots(rows, 4, n_pairs, a, bq, cq);
        else few_dots(rows, columns % 4, n_pairs, a, bq, cq);
    }
}

/* Parts of the moments and their derivatives. With n_pairs = 2 they are sums of two products, s·q + s2·q2. */

/* Messages of some edges of one source, written to their places in a chunk that starts with edge `origin`. */
PART void messages(const int n_pairs, number count, const number *edges, number origin, const REAL *s,
                   const REAL *q, const REAL *s2, const REAL *q2, REAL *m) {
    for (number first = 0; first < count; first += ROWS) {
        const int rows = rows_left(count, first);
        factor_pair pairs[2] = {{.b = q, .step = 1, .count = N}, {.b = q2, .step = 1, .count = N}};
        REAL *to[ROWS];
        for (int r = 0; r < rows; r++) {
            const number e = edges[first + r];
            pairs[0].a[r] = s + e * N;
            if (n_pairs > 1) pairs[1].a[r] = s2 + e * N;
            to[r] = m + (e - origin) * F;
        }
        WITH_ROWS(rows, product(R, n_pairs, pairs, to))
    }
}

INLINE void chunk_messages(const int n_pairs, const graph *p, number chunk, const REAL *s, const REAL *q, const REAL *s2,
                           const REAL *q2, REAL *m) {
    const number begin = p->target_ptr[p->chunks[chunk]], end = p->target_ptr[p->chunks[chunk + 1]];
    for (number k = begin, next; k < end; k = next) {
        const number j = p->source[p->by_chunk[k]];
        for (next = k + 1; next < end && p->source[p->by_chunk[next]] == j;) next++;
        const REAL *of_second = n_pairs > 1 ? of_source(p, q2, j) : 0;
        messages(n_pairs, next - k, p->by_chunk + k, begin, s, of_source(p, q, j), s2, of_second, m);
    }
}

/* c[r] = Σ_k a[k·columns + r] b[k] (+ a2·b2) for all r: moments of a target, or dq of a source. */
PART void summed(const int columns, const int n_pairs, number count, const REAL *a, const REAL *b, const REAL *a2,
                   const REAL *b2, REAL *c) {
    const int block = columns % 4 && columns % 3 == 0 ? 3 : ROWS;
    for (int first = 0; first < columns; first += block) {
        const int rows = columns - first < block ? columns - first : block;
        factor_pair pairs[2] = {{.b = b, .step = columns, .count = (int)count}, {.b = b2, .step = columns, .count = (int)count}};
        REAL *to[ROWS];
        for (int r = 0; r < rows; r++) {
            pairs[0].a[r] = a + first + r;
            if (n_pairs > 1) pairs[1].a[r] = a2 + first + r;
            to[r] = c + (first + r) * F;
        }
        WITH_ROWS(rows, product(R, n_pairs, pairs, to))
    }
}

/* dy of the edges of one target. */
PART void harmonics_gradient(number count, const REAL *m, const REAL *g, REAL *dy) {
    for (number first = 0; first < count; first += ROWS) {
        const int rows = rows_left(count, first);
        const REAL *a[1][ROWS], *b[1] = {g};
        REAL *to[ROWS];
        for (int r = 0; r < rows; r++) {
            a[0][r] = m + (first + r) * F;
            to[r] = dy + (first + r) * C;
        }
        WITH_ROWS(rows, dots(R, C, 1, (const REAL *const(*)[ROWS])a, b, to))
    }
}

/* ds of the edges of one source. */
PART void sensitivity_gradient(const int n_pairs, number count, const number *edges, const REAL *p, const REAL *q,
                                 const REAL *p2, const REAL *q2, REAL *ds) {
    for (number first = 0; first < count; first += ROWS) {
        const int rows = rows_left(count, first);
        const REAL *a[2][ROWS], *b[2] = {q, q2};
        REAL *to[ROWS];
        for (int r = 0; r < rows; r++) {
            a[0][r] = p + (first + r) * F;
            if (n_pairs > 1) a[1][r] = p2 + (first + r) * F;
            to[r] = ds + edges[first + r] * N;
        }
        WITH_ROWS(rows, dots(R, N, n_pairs, (const REAL *const(*)[ROWS])a, b, to))
    }
}

PART void pull(const REAL *y, const REAL *g, REAL *p) {
    const factor_pair pair = {.a = {y}, .b = g, .step = 1, .count = C};
    product(1, 1, &pair, &p);
}

/* Bodies of the loops over targets and sources */

INLINE void first_of_targets(const graph *p, number chunk, const REAL *s, const REAL *q, const REAL *g, REAL *dy, REAL *m) {
    const number begin = p->target_ptr[p->chunks[chunk]];
    chunk_messages(1, p, chunk, s, q, 0, 0, m);
    for (number i = p->chunks[chunk]; i < p->chunks[chunk + 1]; i++) {
        const number e = p->target_ptr[i];
        harmonics_gradient(p->target_ptr[i + 1] - e, m + (e - begin) * F, g + i * C * F, dy + e * C);
    }
}

INLINE void first_of_source(const graph *p, number j, const REAL *s, const REAL *y, const REAL *q, const REAL *g, REAL *ds,
                            REAL *dq, REAL *pulls, REAL *own_s) {
    const number count = p->source_ptr[j + 1] - p->source_ptr[j], *edges = p->by_source + p->source_ptr[j];
    for (number k = 0; k < count; k++) {
        pull(y + edges[k] * C, g + p->target[edges[k]] * C * F, pulls + k * F);
        if (dq) memcpy(own_s + k * N, s + edges[k] * N, N * sizeof(REAL));
    }
    sensitivity_gradient(1, count, edges, pulls, of_source(p, q, j), 0, 0, ds);
    if (dq) summed(N, 1, count, own_s, pulls, 0, 0, dq + j * N * F);
}

typedef struct { const REAL *s, *y, *q; } tangents; /* null q: zero */

INLINE void second_of_targets(const graph *p, number chunk, const REAL *s, const REAL *y, const REAL *q, const REAL *g,
                              const tangents *h, REAL *dy, REAL *dg, REAL *m, REAL *hm) {
    const number begin = p->target_ptr[p->chunks[chunk]];
    chunk_messages(1, p, chunk, s, q, 0, 0, m);
    if (h->q) chunk_messages(2, p, chunk, s, h->q, h->s, q, hm);
    else chunk_messages(1, p, chunk, h->s, q, 0, 0, hm);
    for (number i = p->chunks[chunk]; i < p->chunks[chunk + 1]; i++) {
        const number e = p->target_ptr[i], count = p->target_ptr[i + 1] - e, at = (e - begin) * F;
        harmonics_gradient(count, hm + at, g + i * C * F, dy + e * C);
        summed(C, 2, count, y + e * C, hm + at, h->y + e * C, m + at, dg + i * C * F);
    }
}

INLINE void second_of_source(const graph *p, number j, const REAL *s, const REAL *y, const REAL *q, const REAL *g,
                             const tangents *h, REAL *ds, REAL *dq, REAL *pulls, REAL *h_pulls, REAL *own_s, REAL *own_hs) {
    const number count = p->source_ptr[j + 1] - p->source_ptr[j], *edges = p->by_source + p->source_ptr[j];
    for (number k = 0; k < count; k++) {
        const REAL *of_target = g + p->target[edges[k]] * C * F;
        pull(y + edges[k] * C, of_target, pulls + k * F);
        pull(h->y + edges[k] * C, of_target, h_pulls + k * F);
        memcpy(own_s + k * N, s + edges[k] * N, N * sizeof(REAL));
        memcpy(own_hs + k * N, h->s + edges[k] * N, N * sizeof(REAL));
    }
    if (h->q) sensitivity_gradient(2, count, edges, h_pulls, q + j * N * F, pulls, h->q + j * N * F, ds);
    else sensitivity_gradient(1, count, edges, h_pulls, q + j * N * F, 0, 0, ds);
    summed(N, 2, count, own_s, h_pulls, own_hs, pulls, dq + j * N * F);
}

static number most_in_chunk(const graph *p) {
    number most = 1;
    for (number chunk = 0; chunk < p->n_chunks; chunk++) {
        const number count = p->target_ptr[p->chunks[chunk + 1]] - p->target_ptr[p->chunks[chunk]];
        if (count > most) most = count;
    }
    return most;
}

static number most_of_source(const graph *p) {
    number most = 1;
    for (number j = 0; j < p->n_atoms; j++)
        if (p->source_ptr[j + 1] - p->source_ptr[j] > most) most = p->source_ptr[j + 1] - p->source_ptr[j];
    return most;
}

/* Exported functions; they return 0, or 1 if memory cannot be allocated. In closed graphs the sources of a chunk are
   processed right after its targets, while it is in the cache. */

INLINE int all_moments(int threads, const graph *p, const REAL *s, const REAL *y, const REAL *q, REAL *a, const scales *t,
                       REAL *z) {
    const number most = most_in_chunk(p);
    int failed = 0;
    (void)threads;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        REAL *m = malloc(most * F * sizeof(REAL));
        failed = !m;
#pragma omp for schedule(dynamic)
        for (number chunk = 0; chunk < p->n_chunks; chunk++) {
            if (failed) continue;
            const number begin = p->target_ptr[p->chunks[chunk]];
            chunk_messages(1, p, chunk, s, q, 0, 0, m);
            for (number i = p->chunks[chunk]; i < p->chunks[chunk + 1]; i++) {
                const number e = p->target_ptr[i];
                summed(C, 1, p->target_ptr[i + 1] - e, y + e * C, m + (e - begin) * F, 0, 0, a + i * C * F);
                if (t) invariants(t->cusp, a + i * C * F, t->t1, t->t2, z + i * F);
            }
        }
        free(m);
    }
    return failed;
}

int moments(int threads, const graph *p, const REAL *s, const REAL *y, const REAL *q, REAL *a) {
    return all_moments(threads, p, s, y, q, a, 0, 0);
}

/* Moments and their invariants, computed while the moments are in the cache. */
int interaction(int threads, const graph *p, double cusp, const REAL *s, const REAL *y, const REAL *q, const REAL *t1,
                const REAL *t2, REAL *a, REAL *z) {
    const scales t = {t1, t2, cusp};
    return all_moments(threads, p, s, y, q, a, &t, z);
}

/* Derivative of <z_i, g_i> with respect to the moments of the atoms of a chunk, da[i]. */
INLINE void invariants_of_targets(const graph *p, number chunk, const scales *t, const REAL *a, const REAL *g, REAL *da) {
    for (number i = p->chunks[chunk]; i < p->chunks[chunk + 1]; i++)
        invariants_gradient(t->cusp, a + i * C * F, t->t1, t->t2, g + i * F, da + i * C * F);
}

static number most_atoms_in_chunk(const graph *p) {
    number most = 1;
    for (number chunk = 0; chunk < p->n_chunks; chunk++)
        if (p->chunks[chunk + 1] - p->chunks[chunk] > most) most = p->chunks[chunk + 1] - p->chunks[chunk];
    return most;
}

/* Derivatives of <a, g>, a being the moments, or of <z, g> if scales are given. dq may be null if not needed. */
INLINE int all_gradients(int threads, const graph *p, const REAL *s, const REAL *y, const REAL *q, const REAL *g, REAL *ds,
                         REAL *dy, REAL *dq, const scales *t, const REAL *a) {
    const number most = most_in_chunk(p), degree = most_of_source(p), own = t && p->closed ? most_atoms_in_chunk(p) : 0;
    /* derivatives with respect to the moments: of all atoms if a source can have targets in any chunk, else per chunk */
    REAL *of_all = t && !p->closed ? malloc((p->n_atoms ? p->n_atoms : 1) * C * F * sizeof(REAL)) : 0;
    int failed = t && !p->closed && !of_all;
    if (failed) return failed;
    (void)threads;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        REAL *m = malloc((most * F + degree * (F + N) + own * C * F) * sizeof(REAL));
        REAL *pulls = m ? m + most * F : 0, *own_s = m ? pulls + degree * F : 0, *of_chunk = m ? own_s + degree * N : 0;
        failed = !m;
#pragma omp for schedule(dynamic)
        for (number chunk = 0; chunk < p->n_chunks; chunk++) {
            if (failed) continue;
            const REAL *by_moments = g;
            if (t) {
                REAL *da = p->closed ? of_chunk - p->chunks[chunk] * C * F : of_all;
                invariants_of_targets(p, chunk, t, a, g, da);
                by_moments = da;
            }
            first_of_targets(p, chunk, s, q, by_moments, dy, m);
            for (number j = p->chunks[chunk]; p->closed && j < p->chunks[chunk + 1]; j++)
                first_of_source(p, j, s, y, q, by_moments, ds, dq, pulls, own_s);
        }
        if (!p->closed) {
#pragma omp for schedule(dynamic, 8)
            for (number j = 0; j < p->n_atoms; j++)
                if (!failed) first_of_source(p, j, s, y, q, t ? of_all : g, ds, dq, pulls, own_s);
        }
        free(m);
    }
    free(of_all);
    return failed;
}

int moments_gradient(int threads, const graph *p, const REAL *s, const REAL *y, const REAL *q, const REAL *g, REAL *ds,
                     REAL *dy, REAL *dq) {
    return all_gradients(threads, p, s, y, q, g, ds, dy, dq, 0, 0);
}

int interaction_gradient(int threads, const graph *p, double cusp, const REAL *s, const REAL *y, const REAL *q,
                         const REAL *t1, const REAL *t2, const REAL *a, const REAL *g, REAL *ds, REAL *dy, REAL *dq) {
    const scales t = {t1, t2, cusp};
    return all_gradients(threads, p, s, y, q, g, ds, dy, dq, &t, a);
}

int moments_second(int threads, const graph *p, const REAL *s, const REAL *y, const REAL *q, const REAL *g, const REAL *hs,
                   const REAL *hy, const REAL *hq, REAL *ds, REAL *dy, REAL *dq, REAL *dg) {
    const number most = most_in_chunk(p), degree = most_of_source(p);
    const tangents h = {hs, hy, hq};
    int failed = 0;
    (void)threads;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        REAL *m = malloc(2 * (most * F + degree * (F + N)) * sizeof(REAL));
        REAL *hm = m ? m + most * F : 0, *pulls = m ? hm + most * F : 0, *h_pulls = m ? pulls + degree * F : 0;
        REAL *own_s = m ? h_pulls + degree * F : 0, *own_hs = m ? own_s + degree * N : 0;
        failed = !m;
#pragma omp for schedule(dynamic)
        for (number chunk = 0; chunk < p->n_chunks; chunk++) {
            if (failed) continue;
            second_of_targets(p, chunk, s, y, q, g, &h, dy, dg, m, hm);
            for (number j = p->chunks[chunk]; p->closed && j < p->chunks[chunk + 1]; j++)
                second_of_source(p, j, s, y, q, g, &h, ds, dq, pulls, h_pulls, own_s, own_hs);
        }
        if (!p->closed) {
#pragma omp for schedule(dynamic, 8)
            for (number j = 0; j < p->n_atoms; j++)
                if (!failed) second_of_source(p, j, s, y, q, g, &h, ds, dq, pulls, h_pulls, own_s, own_hs);
        }
        free(m);
    }
    return failed;
}
