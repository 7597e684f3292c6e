/* Matrix products of small and middling size, all by one register tile: C[i][j] (+)= sum over p of A[i][p] B[p][j].
 *
 * A is read an element at a time, so it may be transposed; B is read in vectors along j. A weight matrix is packed once
 * into strips of STRIP vectors, each strip contiguous, and then serves every row. The sum over p runs from first to
 * last in one accumulator: a fixed order. What A, B and C hold together should fit the second-level cache: callers take
 * matrices in blocks that do. */

/* One term of a tile's sums, for A's elements at `by_row`. Those of the first `shared` rows are loaded with each of their
 * products, the others once into a register: loads and instructions are both scarce, the more so where another thread
 * runs on the same core. */
INLINE void term(const int rows, const int strip, const int shared, vec sums[ROWS][STRIP], const float *by_row[ROWS],
                 const float *B) {
    vec b[STRIP];
#pragma GCC unroll 3
    for (int j = 0; j < strip; j++) b[j] = in_register(load(B + j * LANES));
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        vec a = i < shared ? splat(0.0f) : in_register(splat(*by_row[i]));
#pragma GCC unroll 3
        for (int j = 0; j < strip; j++)
            sums[i][j] = i < shared ? add_scaled(sums[i][j], by_row[i], b[j]) : add_product(sums[i][j], a, b[j]);
    }
}

/* One tile of `rows` x `strip` vectors; both are constants where this is inlined, so that `sums` lives in registers. A
 * is read along its rows (ap = 1) or its columns (ai = 1). */
INLINE void tile(const int rows, const int strip, long K, const float *A, long ai, long ap, const float *B, long ldb,
                 float *C, long ldc, int add) {
    enum { TERMS = 4, SHARED = 3 }; /* the fastest of those tried */
    vec sums[ROWS][STRIP];
    const float *by_row[ROWS], *here[ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        by_row[i] = A + i * ai;
#pragma GCC unroll 3
        for (int j = 0; j < strip; j++) {
            sums[i][j] = splat(0.0f);
            __builtin_prefetch(C + i * ldc + j * LANES, 1); /* wanted when the sums are done */
        }
    }
    long p = 0;
    if (ap == 1)
        for (; p + TERMS <= K; p += TERMS) {
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) in_pointer(by_row[i]);
#pragma GCC unroll 4
            for (int t = 0; t < TERMS; t++, B += ldb) {
#pragma GCC unroll 8
                for (int i = 0; i < rows; i++) here[i] = by_row[i] + t;
                term(rows, strip, SHARED, sums, here, B);
            }
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) by_row[i] += TERMS;
        }
    for (A += p * ap; p < K; p++, A += ap, B += ldb) {
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) here[i] = A + i * ai;
        term(rows, strip, 0, sums, here, B);
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

/* All rows of one strip. Few rows are left over where a mixture's expert has an odd number of them. */
INLINE void strip_rows(const int strip, long M, long K, const float *A, long ai, long ap, const float *B, long ldb,
                       float *C, long ldc, int add) {
    long i = 0;
    for (; i + ROWS <= M; i += ROWS) tile(ROWS, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
    for (; i + 4 <= M; i += 4) tile(4, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
    for (; i + 2 <= M; i += 2) tile(2, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
    for (; i < M; i++) tile(1, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
}

/* Width of the next strip where `columns` (a multiple of LANES) are left: as wide as can be, but two of two vectors
 * rather than one of three and one of one, which would wait for its sums. */
static inline long strip_width(long columns) {
    return STRIP == 3 && columns == 4 * LANES ? 2 * LANES : columns < STRIP * LANES ? columns : STRIP * LANES;
}

INLINE void product(long M, long N, long K, const float *A, long ai, long ap, const float *B, long ldb, float *C,
                    long ldc, int add, long band) {
    for (long i = 0; i < M; i += band) {
        long rows = least(band, M - i);
        for (long j = 0, width; j < N; j += width) {
            width = strip_width(N - j);
            const float *a = A + i * ai, *b = ldb ? B + j : B + j * K;
            float *c = C + i * ldc + j;
            long step = ldb ? ldb : width;
            if (width == 3 * LANES) strip_rows(STRIP, rows, K, a, ai, ap, b, step, c, ldc, add);
            else if (width == 2 * LANES) strip_rows(2, rows, K, a, ai, ap, b, step, c, ldc, add);
            else strip_rows(1, rows, K, a, ai, ap, b, step, c, ldc, add);
        }
    }
}

/* C (M x N) (+)= A B, A by rows of `lda`. B is K x N by rows of `ldb`, or packed (ldb = 0). N is a multiple of LANES.
 * Rows are taken BAND at a time, which stay in the first-level cache while the strips of B pass by. */
static void gemm(long M, long N, long K, const float *A, long lda, const float *B, long ldb, float *C, long ldc,
                 int add) {
    product(M, N, K, A, lda, 1, B, ldb, C, ldc, add, BAND);
}

/* C (M x N) (+)= A^T B, A (K x M) and B (K x N) by rows: a weight's gradient. */
static void gemm_tn(long M, long N, long K, const float *A, long lda, const float *B, long ldb, float *C, long ldc,
                    int add) {
    product(M, N, K, A, 1, lda, B, ldb, C, ldc, add, M);
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

/* Rows `at` to `at + rows` of a packed matrix of K rows in strips, from B (rows x N): by rows of `bp` (bj = 1), or given
 * as its transpose, by rows of `bj` (bp = 1). Columns from N up to its multiple of LANES are zero. */
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
