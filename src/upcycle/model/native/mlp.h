/* SwiGLU MLPs: of a dense layer, and of experts, each on its own rows. Both take the same way through the same
 * functions, so that one expert computes, bit for bit, what a dense layer does.
 *
 * The hidden layer is taken in blocks of units. A block's weights and their gradients stay in the second-level cache
 * while all rows pass by, CHUNK at a time. So of each hidden layer h (N x 2M: gate, up) the blocks are arrays of their
 * own, `h[b]` (N x 2 units): written and read from end to end, and small enough for an allocator to use again. */

enum { UNIT_WEIGHTS = 16384, STREAM = 393216 };

/* Units of a block: as many as a width of D leaves room for. */
long upcycle_hidden_units(long D, long M) {
    long blocks = (M * D + UNIT_WEIGHTS - 1) / UNIT_WEIGHTS;
    long units = padded((M + blocks - 1) / blocks);
    return least(M, units < 3 * LANES ? 3 * LANES : units);
}

/* Rows that pass by a block: their inputs, outputs and gradients should stay in the third-level cache until the next
 * block. Where there is one block only, its weights wait in the second-level cache for CHUNK rows at a time. */
static long stream_rows(long D, long M) {
    return upcycle_hidden_units(D, M) == M || STREAM / D < CHUNK ? CHUNK : STREAM / D / CHUNK * CHUNK;
}

INLINE void add_row(long D, float gate, const float *from, float *to) {
    for (long d = 0; d < D; d += LANES) store(to + d, load(to + d) + load(from + d) * gate);
}

/* y (rows x D) = (silu(gate) * up) Wout^T of xn; rows `at` and on of h are written. w_in (2M x D), w_out (D x M).
 * Weights are packed for their first rows; of a single block they are still there for the next. */
static void mlp_forward(long rows, long D, long M, const float *xn, const float *w_in, const float *w_out,
                        int first_rows, float *const *h, long at, float *y) {
    long most = upcycle_hidden_units(D, M);
    float *into = scratch(PACKED, 2 * most * D), *back = scratch(PACKED2, most * D);
    float *act = scratch(NARROW, CHUNK * (most + PAD));
    for (long first = 0; first < M; first += most, h++) {
        long units = least(most, M - first), lda = units + PAD;
        if (first_rows || most < M) {
            pack(D, 0, D, units, w_in + first * D, 1, D, into);
            pack(D, 0, D, units, w_in + (M + first) * D, 1, D, into + units * D);
            pack(units, 0, units, D, w_out + first, 1, M, back);
        }
        for (long r = 0; r < rows; r += CHUNK) {
            long n = least(CHUNK, rows - r);
            float *gate = *h + (at + r) * 2 * units;
            gemm(n, units, D, xn + r * D, D, into, 0, gate, 2 * units, 0);
            gemm(n, units, D, xn + r * D, D, into + units * D, 0, gate + units, 2 * units, 0);
            for (long i = 0; i < n; i++, gate += 2 * units)
                for (long m = 0; m < units; m += LANES)
                    store(act + i * lda + m, load(gate + m) * sigmoid(load(gate + m)) * load(gate + units + m));
            gemm(n, D, units, act, lda, back, 0, y + r * D, D, first > 0);
        }
    }
}

/* Of one block's rows: from gate and up (h), the gradient of their product (dact) and the rows' gates: the product, the
 * gradients of both by rows (dh, gate and up) and in panels, and those of the rows' gates. */
static void swiglu_backward(long n, long units, const float *gate, const float *dact, const float *gates, int first,
                            float *act, float *dh, float *panels, float *dgates) {
    long lda = units + PAD, ldh = 2 * units + PAD;
    for (long i = 0; i < n; i++, gate += 2 * units, dact += lda, act += lda, dh += ldh) {
        float g = gates ? gates[i] : 1.0f;
        vec dots = splat(0.0f);
        for (long m = 0; m < units; m += LANES) {
            vec z = load(gate + m), u = load(gate + units + m), d = load(dact + m), s = sigmoid(z), silu = z * s;
            vec a = silu * u;
            dots += d * a;
            d *= g;
            vec dgate = d * u * (s + silu * (1.0f - s)), dup = d * silu;
            store(act + m, a * g);
            store(dh + m, dgate);
            store(dh + units + m, dup);
            store_panels(panels, n, i, m, dgate);
            store_panels(panels, n, i, units + m, dup);
        }
        if (gates) dgates[i] = (first ? 0.0f : dgates[i]) + sum(dots);
    }
}

/* From dy (rows x D) and h: gradients of the weights (first: written, else added to), dxn (rows x D). With gates, y was
 * multiplied by its row's gate, and dgates (rows) is written. */
static void mlp_backward(long rows, long D, long M, const float *xn, const float *dy, const float *gates,
                         const float *const *h, long at, const float *w_in, const float *w_out, int first_rows,
                         float *dw_in, float *dw_out, float *dxn, float *dgates) {
    long most = upcycle_hidden_units(D, M);
    float *into = scratch(PACKED, 2 * most * D), *back = scratch(PACKED2, most * D);
    float *act = scratch(NARROW, CHUNK * (most + PAD)), *dact = scratch(SCORES, CHUNK * (most + PAD));
    float *dh = scratch(WIDE, CHUNK * (2 * most + PAD)), *dh_panels = scratch(DSCORES, CHUNK * 2 * most);
    float *strips = scratch(STRIPPED, rows * D), *panels = scratch(PANELLED, rows * D); /* of xn, dy: chunk by chunk */
    for (long r = 0; r < rows; r += CHUNK) {
        long n = least(CHUNK, rows - r);
        pack(n, 0, n, D, xn + r * D, D, 1, strips + r * D);
        to_panels(n, D, dy + r * D, D, panels + r * D);
    }
    for (long first = 0; first < M; first += most, h++) {
        long units = least(most, M - first), lda = units + PAD, ldh = 2 * units + PAD;
        if (first_rows || most < M) {
            pack(2 * units, 0, units, D, w_in + first * D, D, 1, into);
            pack(2 * units, units, units, D, w_in + (M + first) * D, D, 1, into);
            pack(D, 0, D, units, w_out + first, M, 1, back);
        }
        for (long r = 0; r < rows; r += CHUNK) {
            long n = least(CHUNK, rows - r);
            int add = !first_rows || r;
            gemm(n, units, D, dy + r * D, D, back, 0, dact, lda, 0);
            swiglu_backward(n, units, *h + (at + r) * 2 * units, dact, gates ? gates + r : NULL, !first, act, dh,
                            dh_panels, gates ? dgates + r : NULL);
            gemm_panels(D, units, n, panels + r * D, act, lda, dw_out + first, M, add);
            gemm_panels(units, D, n, dh_panels, strips + r * D, 0, dw_in + first * D, D, add);
            gemm_panels(units, D, n, dh_panels + units * n, strips + r * D, 0, dw_in + (M + first) * D, D, add);
            gemm(n, D, 2 * units, dh, ldh, into, 0, dxn + r * D, D, first > 0);
        }
    }
}

/* A dense layer: out = x + MLP(norm(x)). x, out (N x D), w_in (2M x D), w_out (D x M); kept: h (blocks), rstd (N). */
void upcycle_mlp_forward(long N, long D, long M, float eps, const float *x, const float *norm, const float *w_in,
                         const float *w_out, float *out, float *const *h, float *rstd) {
    long most = least(N, stream_rows(D, M));
    float *xn = scratch(XN, most * D), *y = scratch(OUT, most * D);
    for (long at = 0; at < N; at += most) {
        long rows = least(most, N - at);
        norm_forward(rows, D, x + at * D, norm, eps, xn, rstd + at);
        mlp_forward(rows, D, M, xn, w_in, w_out, at == 0, h, at, y);
        for (long i = 0; i < rows * D; i += LANES) store(out + at * D + i, load(x + at * D + i) + load(y + i));
    }
}

/* Its gradients; dnorm must be zero at first. */
void upcycle_mlp_backward(long N, long D, long M, const float *x, const float *norm, const float *w_in,
                          const float *w_out, const float *const *h, const float *rstd, const float *dout, float *dx,
                          float *dnorm, float *dw_in, float *dw_out) {
    long most = least(N, stream_rows(D, M));
    float *xn = scratch(XN, most * D), *dxn = scratch(OUT, most * D);
    for (long at = 0; at < N; at += most) {
        long rows = least(most, N - at);
        norm_again(rows, D, x + at * D, norm, rstd + at, xn);
        mlp_backward(rows, D, M, xn, dout + at * D, NULL, h, at, w_in, w_out, at == 0, dw_in, dw_out, dxn, NULL);
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

/* out = x + sum over a token's K slots, in the order of experts, of gate * expert(xn). xn, x, out (T x D), gates
 * (T x K), w_in (E x 2M x D), w_out (E x D x M); slots (T K) and ends (E) as sorted above; kept: h (blocks of T K
 * rows). */
void upcycle_experts_forward(long T, long K, long E, long D, long M, const float *xn, const float *x,
                             const float *gates, const float *w_in, const float *w_out, const int32_t *slots,
                             const int32_t *ends, float *out, float *const *h) {
    long most = stream_rows(D, M);
    memcpy(out, x, T * D * sizeof(float));
    for (long e = 0, at = 0; e < E; e++)
        for (long begin = at, rows; at < ends[e]; at += rows) {
            rows = least(most, ends[e] - at);
            float *rows_in = scratch(XN, rows * D), *y = scratch(OUT, rows * D);
            gather(rows, D, K, slots + at, xn, rows_in);
            mlp_forward(rows, D, M, rows_in, w_in + e * 2 * M * D, w_out + e * M * D, at == begin, h, at, y);
            for (long r = 0; r < rows; r++) add_row(D, gates[slots[at + r]], y + r * D, out + slots[at + r] / K * D);
        }
}

/* Its gradients (that of x is dout itself). */
void upcycle_experts_backward(long T, long K, long E, long D, long M, const float *xn, const float *gates,
                              const float *w_in, const float *w_out, const int32_t *slots, const int32_t *ends,
                              const float *const *h, const float *dout, float *dxn, float *dgates, float *dw_in,
                              float *dw_out) {
    long most = stream_rows(D, M);
    memset(dxn, 0, T * D * sizeof(float));
    for (long e = 0, at = 0; e < E; e++) {
        float *dwi = dw_in + e * 2 * M * D, *dwo = dw_out + e * M * D;
        if (at == ends[e]) {
            memset(dwi, 0, 2 * M * D * sizeof(float));
            memset(dwo, 0, M * D * sizeof(float));
        }
        for (long begin = at, rows; at < ends[e]; at += rows) {
            rows = least(most, ends[e] - at);
            float *rows_in = scratch(XN, rows * D), *dy = scratch(QUERY, rows * D), *by_expert = scratch(OUT, rows * D);
            float *g = scratch(KEY, 2 * rows), *dg = g + rows;
            gather(rows, D, K, slots + at, xn, rows_in);
            gather(rows, D, K, slots + at, dout, dy);
            for (long r = 0; r < rows; r++) g[r] = gates[slots[at + r]];
            mlp_backward(rows, D, M, rows_in, dy, g, h, at, w_in + e * 2 * M * D, w_out + e * M * D, at == begin, dwi,
                         dwo, by_expert, dg);
            for (long r = 0; r < rows; r++) {
                add_row(D, 1.0f, by_expert + r * D, dxn + slots[at + r] / K * D);
                dgates[slots[at + r]] = dg[r];
            }
        }
    }
}
