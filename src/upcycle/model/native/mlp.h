/* SwiGLU MLPs: of a dense layer, and of experts, each on its own rows. Both take the same way through the same
 * functions, so that one expert computes, bit for bit, what a dense layer does. */

/* Distance of hidden rows. Without PAD rows of a power of two would share a few sets of the cache. */
static long ld_of(long M) { return 2 * M + PAD; }

/* Rows at a time: hidden rows of 2M fill a quarter of a megabyte, and with their gradients stay in the second-level
 * cache, also where two jobs share one. */
static long rows_of(long M) {
    long rows = 32768 / M / ROWS * ROWS;
    return rows < 4 * ROWS ? 4 * ROWS : rows > 20 * ROWS ? 20 * ROWS : rows;
}

INLINE void add_row(long D, float gate, const float *from, float *to) {
    for (long d = 0; d < D; d += LANES) store(to + d, load(to + d) + load(from + d) * gate);
}

/* h (rows x 2M: gate, up; rows ld_of(M) apart) of xn, and y (rows x D) = (silu(gate) * up) Wout^T. */
static void mlp_rows_forward(long rows, long D, long M, const float *xn, const float *packed_in,
                             const float *packed_out, float *h, float *y) {
    long ld = ld_of(M), lda = M + PAD;
    float *act = scratch(NARROW, rows * lda);
    gemm(rows, 2 * M, D, xn, D, 1, packed_in, 0, h, ld, 0);
    for (long r = 0; r < rows; r++) {
        const float *gate = h + r * ld, *up = gate + M;
        for (long m = 0; m < M; m += LANES)
            store(act + r * lda + m, load(gate + m) * sigmoid(load(gate + m)) * load(up + m));
    }
    gemm(rows, D, M, act, lda, 1, packed_out, 0, y, D, 0);
}

/* From dy (rows x D) and h: gradients of the weights (first: written, else added to), dxn (rows x D). With gates, y was
 * multiplied by its row's gate, and dgates (rows) is written. */
static void mlp_rows_backward(long rows, long D, long M, const float *xn, const float *dy, const float *gates,
                              const float *h, const float *packed_in, const float *packed_out, int first, float *dw_in,
                              float *dw_out, float *dxn, float *dgates) {
    long ld = ld_of(M), lda = M + PAD;
    float *act = scratch(NARROW, rows * lda), *dh = scratch(WIDE, rows * ld), *dact = scratch(SCORES, rows * lda);
    gemm(rows, M, D, dy, D, 1, packed_out, 0, dact, lda, 0);
    for (long r = 0; r < rows; r++) {
        const float *gate = h + r * ld, *up = gate + M;
        float g = gates ? gates[r] : 1.0f;
        vec dots = splat(0.0f);
        for (long m = 0; m < M; m += LANES) {
            vec z = load(gate + m), u = load(up + m), d = load(dact + r * lda + m), s = sigmoid(z), silu = z * s;
            vec a = silu * u;
            dots += d * a;
            d *= g;
            store(act + r * lda + m, a * g);
            store(dh + r * ld + m, d * u * (s + silu * (1.0f - s)));
            store(dh + r * ld + M + m, d * silu);
        }
        if (gates) dgates[r] = sum(dots);
    }
    gemm_tn(D, M, rows, dy, D, act, lda, dw_out, M, !first);
    gemm_tn(2 * M, D, rows, dh, ld, xn, D, dw_in, D, !first);
    gemm(rows, D, 2 * M, dh, ld, 1, packed_in, 0, dxn, D, 0);
}

/* A dense layer: out = x + MLP(norm(x)). x, out (N x D), w_in (2M x D), w_out (D x M); kept: h (N x ld_of(M)), rstd (N). */
void upcycle_mlp_forward(long N, long D, long M, float eps, const float *x, const float *norm, const float *w_in,
                         const float *w_out, float *out, float *h, float *rstd) {
    long chunk = rows_of(M);
    float *xn = scratch(XN, chunk * D), *in = scratch(PACKED, 2 * M * D), *back = scratch(PACKED2, M * D);
    float *y = scratch(OUT, chunk * D);
    pack(D, 2 * M, w_in, 1, D, in);
    pack(M, D, w_out, 1, M, back);
    for (long at = 0; at < N; at += chunk) {
        long rows = least(chunk, N - at);
        norm_forward(rows, D, x + at * D, norm, eps, xn, rstd + at);
        memcpy(out + at * D, x + at * D, rows * D * sizeof(float));
        mlp_rows_forward(rows, D, M, xn, in, back, h + at * ld_of(M), y);
        for (long r = at; r < at + rows; r++) add_row(D, 1.0f, y + (r - at) * D, out + r * D);
    }
}

/* Its gradients; dnorm must be zero at first. */
void upcycle_mlp_backward(long N, long D, long M, const float *x, const float *norm, const float *w_in,
                          const float *w_out, const float *h, const float *rstd, const float *dout, float *dx,
                          float *dnorm, float *dw_in, float *dw_out) {
    long chunk = rows_of(M);
    float *xn = scratch(XN, chunk * D), *in = scratch(PACKED, 2 * M * D), *back = scratch(PACKED2, M * D);
    float *dxn = scratch(OUT, chunk * D);
    pack(2 * M, D, w_in, D, 1, in);
    pack(D, M, w_out, M, 1, back);
    for (long at = 0; at < N; at += chunk) {
        long rows = least(chunk, N - at);
        norm_again(rows, D, x + at * D, norm, rstd + at, xn);
        mlp_rows_backward(rows, D, M, xn, dout + at * D, NULL, h + at * ld_of(M), in, back, at == 0, dw_in, dw_out, dxn,
                          NULL);
        norm_backward(rows, D, x + at * D, norm, rstd + at, dxn, dout + at * D, dx + at * D, dnorm);
    }
}

static void gather(long rows, long D, long K, const int32_t *slots, const float *from, float *to) {
    for (long r = 0; r < rows; r++) memcpy(to + r * D, from + slots[r] / K * D, D * sizeof(float));
}

/* Slots (token x K + rank) in the order of their experts, tokens in order within one (a counting sort); ends (E). */
void upcycle_sort_slots(long T, long K, long E, const int64_t *ids, int32_t *slots, int32_t *ends) {
    memset(ends, 0, E * sizeof(int32_t));
    for (long i = 0; i < T * K; i++) ends[ids[i]]++;
    for (long e = 0, before = 0; e < E; e++) {
        long count = ends[e];
        ends[e] = before;
        before += count;
    }
    for (long i = 0; i < T * K; i++) slots[ends[ids[i]]++] = i;
}

/* out = x + sum over a token's K slots, in the order of experts, of gate * expert(xn). xn, x, out (T x D), gates (T x K), w_in (E x 2M x D),
 * w_out (E x D x M); slots (T K) and ends (E) as sorted above; kept: h (T K x ld_of(M)). */
void upcycle_experts_forward(long T, long K, long E, long D, long M, const float *xn, const float *x,
                             const float *gates, const float *w_in, const float *w_out, const int32_t *slots,
                             const int32_t *ends, float *out, float *h) {
    long chunk = rows_of(M);
    float *rows_in = scratch(XN, chunk * D), *in = scratch(PACKED, 2 * M * D), *back = scratch(PACKED2, M * D);
    float *y = scratch(OUT, chunk * D);
    memcpy(out, x, T * D * sizeof(float));
    for (long e = 0, at = 0; e < E; e++) {
        if (at == ends[e]) continue;
        pack(D, 2 * M, w_in + e * 2 * M * D, 1, D, in);
        pack(M, D, w_out + e * M * D, 1, M, back);
        for (; at < ends[e];) {
            long rows = least(chunk, ends[e] - at);
            gather(rows, D, K, slots + at, xn, rows_in);
            mlp_rows_forward(rows, D, M, rows_in, in, back, h + at * ld_of(M), y);
            for (long r = 0; r < rows; r++) add_row(D, gates[slots[at + r]], y + r * D, out + slots[at + r] / K * D);
            at += rows;
        }
    }
}

/* Its gradients (that of x is dout itself). */
void upcycle_experts_backward(long T, long K, long E, long D, long M, const float *xn, const float *gates,
                              const float *w_in, const float *w_out, const int32_t *slots, const int32_t *ends,
                              const float *h, const float *dout, float *dxn, float *dgates, float *dw_in,
                              float *dw_out) {
    long chunk = rows_of(M);
    float *rows_in = scratch(XN, chunk * D), *in = scratch(PACKED, 2 * M * D), *back = scratch(PACKED2, M * D);
    float *by_expert = scratch(OUT, chunk * D), *dy = scratch(QUERY, chunk * D);
    float *g = scratch(KEY, 2 * chunk), *dg = g + chunk;
    memset(dxn, 0, T * D * sizeof(float));
    for (long e = 0, at = 0; e < E; e++) {
        float *dwi = dw_in + e * 2 * M * D, *dwo = dw_out + e * M * D;
        if (at == ends[e]) {
            memset(dwi, 0, 2 * M * D * sizeof(float));
            memset(dwo, 0, M * D * sizeof(float));
            continue;
        }
        pack(2 * M, D, w_in + e * 2 * M * D, D, 1, in);
        pack(D, M, w_out + e * M * D, M, 1, back);
        for (int first = 1; at < ends[e]; first = 0) {
            long rows = least(chunk, ends[e] - at);
            gather(rows, D, K, slots + at, xn, rows_in);
            gather(rows, D, K, slots + at, dout, dy);
            for (long r = 0; r < rows; r++) g[r] = gates[slots[at + r]];
            mlp_rows_backward(rows, D, M, rows_in, dy, g, h + at * ld_of(M), in, back, first, dwi, dwo, by_expert, dg);
            for (long r = 0; r < rows; r++) {
                add_row(D, 1.0f, by_expert + r * D, dxn + slots[at + r] / K * D);
                dgates[slots[at + r]] = dg[r];
            }
            at += rows;
        }
    }
}
