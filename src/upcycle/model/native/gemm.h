/* Matrix products of small and middling size, all by one register tile: C[i][j] (+)= sum over p of A[i][p] B[p][j].
 *
 * A is read an element at a time, B in vectors along j. The sum over p runs from first to last in one accumulator: a
 * fixed order. What A, B and C hold together should fit the second-level cache: callers take matrices in blocks.
 * Numbers that are read together lie together:
 * - strips: B (K x N) a strip of up to STRIP vectors after another, each K rows of the strip's width;
 * - panels: A for A^T B (K x M) a panel of ROWS columns after another, each K rows of ROWS numbers. */

enum { BY_ROWS, COLUMNS, PANELS }; /* how A is read: rows of A; columns of A^T, by rows; the same in panels */

/* One term of a tile's sums, of B's vectors `b` and A's elements at row[i] + t, or at A + i where A is transposed (then
 * `row` is not used); meanwhile B's next vectors are fetched. Elements of the first SHARED rows are loaded with each of
 * their products, the others once: loads and instructions are both scarce, the more so where another thread runs on the
 * same core. All 32 registers of AVX-512 are in use. */
INLINE void term(const int rows, const int strip, const int layout, vec sums[ROWS][STRIP], const float *const *row,
                 const int t, const float *A, const vec *b, const float *B_next, vec *next) {
    const int shared = layout == COLUMNS ? 0 : SHARED; /* the fastest of those tried */
#pragma GCC unroll 3
    for (int j = 0; j < strip; j++) next[j] = fetch(B_next + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        const float *a = layout == BY_ROWS ? row[i] + t : A + i;
        vec spread = i < shared ? b[0] : fetch_spread(a);
#pragma GCC unroll 3
        for (int j = 0; j < strip; j++)
            sums[i][j] = i < shared ? add_scaled(sums[i][j], a, b[j]) : add_product(sums[i][j], spread, b[j]);
    }
}

/* One tile of `rows` x `strip` vectors; both are constants where this is inlined, so that `sums` lives in registers. */
INLINE void tile(const int rows, const int strip, const int layout, long K, const float *A, long lda, const float *B,
                 long ldb, float *C, long ldc, int add) {
    vec sums[ROWS][STRIP], b[STRIP], next[STRIP];
    const float *row[ROWS];
#pragma GCC unroll 3
    for (int j = 0; j < strip; j++) b[j] = fetch(B + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        row[i] = layout == BY_ROWS ? A + i * lda : A;
#pragma GCC unroll 3
        for (int j = 0; j < strip; j++) {
            sums[i][j] = splat(0.0f);
            __builtin_prefetch(C + i * ldc + j * LANES, 1); /* wanted when the sums are done */
        }
    }
    long p = 0, step = layout == BY_ROWS ? 0 : layout == PANELS ? ROWS : lda;
    for (; p + 4 <= K; p += 4, A += 4 * step) {
        const float *last = B + 3 * ldb + (p + 4 < K ? ldb : 0); /* nothing is read behind the last row */
        if (layout == BY_ROWS)
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) in_pointer(row[i]);
        term(rows, strip, layout, sums, row, 0, A, b, B + ldb, next);
        term(rows, strip, layout, sums, row, 1, A + step, next, B + 2 * ldb, b);
        term(rows, strip, layout, sums, row, 2, A + 2 * step, b, B + 3 * ldb, next);
        term(rows, strip, layout, sums, row, 3, A + 3 * step, next, last, b);
        B = last;
        if (layout == BY_ROWS)
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) row[i] += 4;
    }
    for (; p < K; p++, A += step) {
        B += p + 1 < K ? ldb : 0;
        term(rows, strip, layout, sums, row, 0, A, b, B, next);
#pragma GCC unroll 3
        for (int j = 0; j < strip; j++) b[j] = next[j];
        if (layout == BY_ROWS)
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) row[i]++;
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 3
        for (int j = 0; j < strip; j++) {
            float *c = C + i * ldc + j * LANES;
            if (add) sums[i][j] += load(c);
            store(c, sums[i][j]);
        }
}

/* Where row i of the product finds A: it is the first of a tile. */
INLINE const float *at_row(const int layout, const float *A, long lda, long K, long i) {
    return layout == BY_ROWS ? A + i * lda : layout == COLUMNS ? A + i : A + i / ROWS * ROWS * K + i % ROWS;
}

/* Rows `i` to `end` of one strip. Few are left over where a mixture's expert has an odd number of them. */
INLINE void strip_rows(const int strip, const int layout, long i, long end, long K, const float *A, long lda,
                       const float *B, long ldb, float *C, long ldc, int add) {
#define ROWS_BY(n)                                                                                                     \
    for (; i + (n) <= end; i += (n))                                                                                   \
    tile(n, strip, layout, K, at_row(layout, A, lda, K, i), lda, B, ldb, C + i * ldc, ldc, add)
    ROWS_BY(ROWS);
    ROWS_BY(4);
    ROWS_BY(2);
    ROWS_BY(1);
#undef ROWS_BY
}

/* Width of the next strip where `columns` (a multiple of LANES) are left: as wide as can be, but two of two vectors
 * rather than one of three and one of one, which would wait for its sums. */
static inline long strip_width(long columns) {
    return STRIP == 3 && columns == 4 * LANES ? 2 * LANES : columns < STRIP * LANES ? columns : STRIP * LANES;
}

INLINE void product(const int layout, long M, long N, long K, const float *A, long lda, const float *B, long ldb,
                    float *C, long ldc, int add, long band) {
    for (long i = 0; i < M; i += band) {
        long end = least(i + band, M);
        for (long j = 0, width; j < N; j += width) {
            width = strip_width(N - j);
            const float *b = ldb ? B + j : B + j * K;
            long step = ldb ? ldb : width;
            if (width == 3 * LANES) strip_rows(STRIP, layout, i, end, K, A, lda, b, step, C + j, ldc, add);
            else if (width == 2 * LANES) strip_rows(2, layout, i, end, K, A, lda, b, step, C + j, ldc, add);
            else strip_rows(1, layout, i, end, K, A, lda, b, step, C + j, ldc, add);
        }
    }
}

/* C (M x N) (+)= A B, A by rows of `lda`. B is K x N by rows of `ldb`, or in strips (ldb = 0). N is a multiple of
 * LANES. Rows are taken BAND at a time, which stay in the first-level cache while the strips of B pass by. */
static void gemm(long M, long N, long K, const float *A, long lda, const float *B, long ldb, float *C, long ldc,
                 int add) {
    product(BY_ROWS, M, N, K, A, lda, B, ldb, C, ldc, add, BAND);
}

/* C (M x N) (+)= A^T B, A (K x M) by rows of `lda`, B as above. */
static void gemm_tn(long M, long N, long K, const float *A, long lda, const float *B, long ldb, float *C, long ldc,
                    int add) {
    product(COLUMNS, M, N, K, A, lda, B, ldb, C, ldc, add, M);
}

/* The same of A in panels: a weight's gradient. */
static void gemm_panels(long M, long N, long K, const float *A, const float *B, long ldb, float *C, long ldc, int add) {
    product(PANELS, M, N, K, A, 0, B, ldb, C, ldc, add, M);
}

/* Columns j to j + LANES of row i to their panels of K rows. */
INLINE void store_panels(float *panels, long K, long i, long j, vec x) {
    float *to = panels + j * K + i * ROWS;
#if defined(__AVX512F__)
    _mm256_storeu_ps(to, _mm512_castps512_ps256((__m512)x));
    _mm256_storeu_pd((double *)(to + ROWS * K), _mm512_extractf64x4_pd((__m512d)x, 1));
#else
    float numbers[LANES];
    store(numbers, x);
    for (int k = 0; k < LANES; k += ROWS) memcpy(to + k * K, numbers + k, ROWS * sizeof(float));
#endif
}

/* A (K x M by rows of `lda`) in panels; M is a multiple of LANES. */
static void to_panels(long K, long M, const float *A, long lda, float *panels) {
    for (long j = 0; j < M; j += ROWS)
        for (long i = 0; i < K; i++, panels += ROWS) memcpy(panels, A + i * lda + j, ROWS * sizeof(float));
}

#if defined(__AVX512F__)
/* A square of 16 x 16 numbers, from rows of `from` to rows of `to`: in pairs of rows, of pairs, of fours, of eights. */
INLINE void transpose_square(const float *from, long ld_from, float *to, long ld_to) {
    __m512 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + i * ld_from);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#define DOUBLES(o, x, y) (__m512) _mm512_unpack##o##_pd((__m512d)(x), (__m512d)(y))
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i] = DOUBLES(lo, b[i], b[i + 2]);
        a[i + 1] = DOUBLES(hi, b[i], b[i + 2]);
        a[i + 2] = DOUBLES(lo, b[i + 1], b[i + 3]);
        a[i + 3] = DOUBLES(hi, b[i + 1], b[i + 3]);
    }
#undef DOUBLES
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* a[4 k + i] has columns i, 4 + i, 8 + i, 12 + i of rows 4 k to 4 k + 3 */
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_ps(to + i * ld_to, _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_ps(to + (i + 4) * ld_to, _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_ps(to + (i + 8) * ld_to, _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_ps(to + (i + 12) * ld_to, _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xdd));
    }
}
#else
INLINE void transpose_square(const float *from, long ld_from, float *to, long ld_to) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) to[j * ld_to + i] = from[i * ld_from + j];
}
#endif

/* to[j][i] = from[i][j] for `rows` x `columns` numbers. */
static void transpose(long rows, long columns, const float *from, long ld_from, float *to, long ld_to) {
    long whole_rows = rows / LANES * LANES, whole_columns = columns / LANES * LANES;
    for (long i = 0; i < whole_rows; i += LANES)
        for (long j = 0; j < whole_columns; j += LANES)
            transpose_square(from + i * ld_from + j, ld_from, to + j * ld_to + i, ld_to);
    for (long i = 0; i < rows; i++)
        for (long j = i < whole_rows ? whole_columns : 0; j < columns; j++) to[j * ld_to + i] = from[i * ld_from + j];
}

/* Rows `at` to `at + rows` of a matrix of K rows in strips, from B (rows x N): by rows of `bp` (bj = 1), or given as its
 * transpose, by rows of `bj` (bp = 1). Columns from N up to its multiple of LANES are zero. */
static void pack(long K, long at, long rows, long N, const float *B, long bp, long bj, float *packed) {
    for (long first = 0, width; first < padded(N); first += width) {
        width = strip_width(padded(N) - first);
        long have = least(width, N - first);
        float *out = packed + first * K + at * width;
        if (bj == 1) {
            for (long p = 0; p < rows; p++, out += width) {
                memcpy(out, B + p * bp + first, have * sizeof(float));
                memset(out + have, 0, (width - have) * sizeof(float));
            }
        } else {
            transpose(have, rows, B + first * bj, bj, out, width);
            for (long p = 0; p < rows; p++)
                for (long j = have; j < width; j++) out[p * width + j] = 0.0f;
        }
    }
}
