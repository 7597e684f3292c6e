/* Matrix products of small and middling size, all by one register tile: C[i][j] (+)= sum over p of A[i][p] B[p][j].
 *
 * A is read an element at a time by strides, so it may be transposed; B is read in vectors along j. A weight matrix is
 * packed once a call into strips of STRIP vectors, each strip contiguous, and then serves every row. The sum over p
 * runs from first to last in one accumulator: a fixed order. */

/* One tile of `rows` x `strip` vectors; both are constants where this is inlined, so that `sums` lives in registers. */
INLINE void tile(const int rows, const int strip, long K, const float *A, long ai, long ap, const float *B, long ldb,
                 float *C, long ldc, int add) {
    vec sums[ROWS][STRIP];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < strip; j++) {
            sums[i][j] = splat(0.0f);
            __builtin_prefetch(C + i * ldc + j * LANES, 1); /* wanted when the sums are done */
        }
    for (long p = 0; p < K; p++) {
        vec b[STRIP];
#pragma GCC unroll 2
        for (int j = 0; j < strip; j++) b[j] = load(B + p * ldb + j * LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            vec a = in_register(splat(A[i * ai + p * ap]));
#pragma GCC unroll 2
            for (int j = 0; j < strip; j++) sums[i][j] += a * b[j];
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < strip; j++) {
            float *c = C + i * ldc + j * LANES;
            if (add) sums[i][j] += load(c);
            store(c, sums[i][j]);
        }
}

/* All rows of one strip. Few rows are left over where a mixture's expert has an odd number of them. */
INLINE void strip_block(const int strip, long M, long K, const float *A, long ai, long ap, const float *B, long ldb,
                       float *C, long ldc, int add) {
    long i = 0;
    for (; i + ROWS <= M; i += ROWS) tile(ROWS, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
    for (; i + 4 <= M; i += 4) tile(4, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
    for (; i + 2 <= M; i += 2) tile(2, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
    for (; i < M; i++) tile(1, strip, K, A + i * ai, ai, ap, B, ldb, C + i * ldc, ldc, add);
}

/* A strip in blocks of DEPTH rows of B, which stay in the first-level cache while the rows of A pass by. */
INLINE void strip_rows(const int strip, long M, long K, const float *A, long ai, long ap, const float *B, long ldb,
                       float *C, long ldc, int add) {
    for (long p = 0; p < K; p += DEPTH)
        strip_block(strip, M, least(DEPTH, K - p), A + p * ap, ai, ap, B + p * ldb, ldb, C, ldc, add || p);
}

/* C (M x N) (+)= A B. B is K x N by rows of `ldb`, or packed (ldb = 0). N is a multiple of LANES. Where C is wide its
 * rows are taken BAND at a time: they lie in as many pages, and the processor's first table of addresses is small. */
static void gemm(long M, long N, long K, const float *A, long ai, long ap, const float *B, long ldb, float *C,
                 long ldc, int add) {
    long band = N > K ? BAND : M;
    for (long i = 0; i < M; i += band) {
        long rows = least(band, M - i);
        for (long j = 0; j < N; j += STRIP * LANES) {
            const float *a = A + i * ai, *b = ldb ? B + j : B + j * K;
            float *c = C + i * ldc + j;
            long width = least(STRIP * LANES, N - j), step = ldb ? ldb : width;
            if (width == STRIP * LANES) strip_rows(STRIP, rows, K, a, ai, ap, b, step, c, ldc, add);
            else strip_rows(1, rows, K, a, ai, ap, b, step, c, ldc, add);
        }
    }
}

/* to[j][i] = from[i][j] for `rows` x `columns` numbers: a vector's square at a time, in log2(LANES) rounds of exchanges. */
static void transpose(long rows, long columns, const float *from, long ld_from, float *to, long ld_to) {
    long whole_rows = 0, whole_columns = 0;
#if defined(__GNUC__) && !defined(__clang__)
    whole_rows = rows / LANES * LANES, whole_columns = columns / LANES * LANES;
    for (long i = 0; i < whole_rows; i += LANES)
        for (long j = 0; j < whole_columns; j += LANES) {
            vec square[LANES];
            for (int r = 0; r < LANES; r++) square[r] = load(from + (i + r) * ld_from + j);
#pragma GCC unroll 4
            for (int step = 1; step < LANES; step *= 2) {
                ivec upper, lower;
                for (int c = 0; c < LANES; c++) {
                    upper[c] = c & step ? LANES + c - step : c;
                    lower[c] = c & step ? LANES + c : c + step;
                }
#pragma GCC unroll 16
                for (int r = 0; r < LANES; r++) {
                    if (r & step) continue;
                    vec a = square[r], b = square[r + step];
                    square[r] = __builtin_shuffle(a, b, upper);
                    square[r + step] = __builtin_shuffle(a, b, lower);
                }
            }
            for (int r = 0; r < LANES; r++) store(to + (j + r) * ld_to + i, square[r]);
        }
#endif
    for (long i = 0; i < rows; i++)
        for (long j = i < whole_rows ? whole_columns : 0; j < columns; j++) to[j * ld_to + i] = from[i * ld_from + j];
}

/* Strips of B (K x N): by rows of `bp` (bj = 1), or given as its transpose, by rows of `bj` (bp = 1). Columns from N up
 * to its multiple of LANES are zero. */
static void pack(long K, long N, const float *B, long bp, long bj, float *packed) {
    for (long first = 0; first < padded(N); first += STRIP * LANES) {
        long width = least(STRIP * LANES, padded(N) - first), have = least(width, N - first);
        float *out = packed + first * K;
        if (bj == 1) {
            for (long p = 0; p < K; p++, out += width) {
                memcpy(out, B + p * bp + first, have * sizeof(float));
                memset(out + have, 0, (width - have) * sizeof(float));
            }
        } else {
            transpose(have, K, B + first * bj, bj, out, width);
            for (long p = 0; p < K; p++)
                for (long j = have; j < width; j++) out[p * width + j] = 0.0f;
        }
    }
}

/* C (M x N) (+)= A^T B, A (K x M) and B (K x N) by rows: a weight's gradient. Columns of A, whose numbers lie far apart,
 * are copied into panels of ROWS, and some PANELS pass by each strip of B while that is in the first-level cache. */
static void gemm_tn(long M, long N, long K, const float *A, long lda, const float *B, long ldb, float *C, long ldc,
                    int add) {
    enum { PANELS = 8 };
    if (N <= STRIP * LANES) { /* nothing to use a copy twice */
        gemm(M, N, K, A, 1, lda, B, ldb, C, ldc, add);
        return;
    }
    float *panels = scratch(0, (size_t)K * ROWS * PANELS);
    for (long first = 0; first < M; first += ROWS * PANELS) {
        long columns = least(ROWS * PANELS, M - first);
        for (long i = 0; i < columns; i += ROWS) {
            const float *from = A + first + i;
            float *to = panels + i * K;
            if (columns - i >= ROWS)
                for (long p = 0; p < K; p++) memcpy(to + p * ROWS, from + p * lda, ROWS * sizeof(float));
            else
                for (long p = 0; p < K; p++) memcpy(to + p * ROWS, from + p * lda, (columns - i) * sizeof(float));
        }
        for (long j = 0; j < N; j += STRIP * LANES)
            for (long i = 0; i < columns; i += ROWS) {
                long rows = least(ROWS, columns - i);
                float *c = C + (first + i) * ldc + j;
                if (N - j >= STRIP * LANES) strip_rows(STRIP, rows, K, panels + i * K, 1, ROWS, B + j, ldb, c, ldc, add);
                else strip_rows(1, rows, K, panels + i * K, 1, ROWS, B + j, ldb, c, ldc, add);
            }
    }
}
