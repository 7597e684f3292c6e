/* The end of the model: norm, output matrix, cross-entropy. The vocabulary is taken in blocks whose part of the matrix,
 * and of its gradient, stays in the second-level cache. A first pass over them leaves e^(logit - largest so far) of
 * some rows (about LOGITS numbers) and the log-sum-exp; a second makes gradients of them. Of a large batch or vocabulary
 * N x V numbers never exist. */

enum { LOGITS = 1 << 20, BLOCK_WEIGHTS = 32768 };

/* Words of a block: all, or a multiple of the widest strip. */
static long block_words(long D, long Vp) {
    long strips = BLOCK_WEIGHTS / D / (STRIP * LANES);
    return least(Vp, (strips ? strips : 1) * STRIP * LANES);
}

/* Rows at a time: many, where the matrix and its gradient have to be brought to the second-level cache for them. */
static long loss_rows(long D, long Vp) {
    long rows = (Vp * D > LOGITS / 4 ? LOGITS : LOGITS / 4) / Vp / CHUNK * CHUNK;
    return rows < CHUNK ? CHUNK : rows;
}

/* One row and block: numbers become e^(number - top), where top is the largest of this block and those before; total,
 * the sum of all so far, is brought to the new top. */
INLINE float exponentials(float *row, long width, float top, float *total) {
    vec most = load(row);
    for (long j = LANES; j < width; j += LANES) most = larger(most, load(row + j));
    float here = largest(most), all = here > top ? here : top;
    vec parts = splat(0.0f);
    for (long j = 0; j < width; j += LANES) {
        vec e = vexp(load(row + j) - all);
        store(row + j, e);
        parts += e;
    }
    *total = (*total ? *total * expf(top - all) : 0.0f) + sum(parts);
    return all;
}

/* Loss of each token in nats (N). With dx (N x D): also the gradients of `share` x the sum of the losses, which go into
 * dx, dnorm (zero at first) and dhead (V x D). Returns 0, or 1 + the first row whose target is no token. */
long upcycle_loss(long N, long D, long V, float eps, float share, const float *x, const float *norm, const float *head,
                  const int64_t *targets, float *losses, float *dx, float *dnorm, float *dhead) {
    long Vp = padded(V), block = block_words(D, Vp), blocks = (Vp + block - 1) / block, ldp = block + PAD;
    long most = least(N, loss_rows(D, Vp));
    float *forward = scratch(PACKED, Vp * D), *backward = dx ? scratch(PACKED2, Vp * D) : NULL;
    float *xn = scratch(XN, most * D), *dxn = scratch(NARROW, most * D), *p = scratch(SCORES, CHUNK * ldp);
    float *panels = scratch(PANELLED, CHUNK * block), *strips = scratch(STRIPPED, most * D);
    float *e = scratch(WIDE, dx ? most * Vp : CHUNK * block), *tops = scratch(KEY, most * blocks);
    float *total = scratch(OUT, 4 * most), *wanted = total + most, *lse = wanted + most, *rstd = lse + most;
    for (long i = 0; i < N; i++)
        if (targets[i] < 0 || targets[i] >= V) return i + 1;
    for (long v = 0; v < Vp; v += block) {
        long have = least(block, V - v);
        pack(D, 0, D, have, head + v * D, 1, D, forward + v * D);
        if (dx) pack(have, 0, have, D, head + v * D, D, 1, backward + v * D);
    }
    for (long at = 0; at < N; at += most) {
        long rows = least(most, N - at);
        norm_forward(rows, D, x + at * D, norm, eps, xn, rstd);
        for (long b = 0, v = 0; b < blocks; b++, v += block) {
            long width = least(block, Vp - v);
            for (long r = 0; r < rows; r += CHUNK) {
                long n = least(CHUNK, rows - r);
                float *logits = dx ? e + v * rows + r * width : e;
                gemm(n, width, D, xn + r * D, D, forward + v * D, 0, logits, width, 0);
                for (long i = r; i < r + n; i++, logits += width) {
                    long target = targets[at + i] - v;
                    if (target >= 0 && target < width) wanted[i] = logits[target];
                    for (long j = V - v; j < width; j++) logits[j] = -INFINITY;
                    if (!b) total[i] = 0.0f;
                    float before = b ? tops[(b - 1) * most + i] : -INFINITY;
                    tops[b * most + i] = exponentials(logits, width, before, total + i);
                }
            }
        }
        for (long i = 0; i < rows; i++) {
            lse[i] = tops[(blocks - 1) * most + i] + logf(total[i]);
            losses[at + i] = lse[i] - wanted[i];
        }
        if (!dx) continue;
        for (long r = 0; r < rows; r += CHUNK) {
            long n = least(CHUNK, rows - r);
            pack(n, 0, n, D, xn + r * D, D, 1, strips + r * D);
        }
        for (long b = 0, v = 0; b < blocks; b++, v += block) {
            long width = least(block, Vp - v), have = least(block, V - v);
            for (long r = 0; r < rows; r += CHUNK) {
                long n = least(CHUNK, rows - r);
                for (long i = 0; i < n; i++) {
                    const float *from = e + v * rows + (r + i) * width;
                    float scale = expf(tops[b * most + r + i] - lse[r + i]) * share;
                    for (long j = 0; j < width; j += LANES) store(p + i * ldp + j, load(from + j) * scale);
                    long target = targets[at + r + i] - v;
                    if (target >= 0 && target < width) p[i * ldp + target] -= share;
                    for (long j = 0; j < width; j += LANES) store_panels(panels, n, i, j, load(p + i * ldp + j));
                }
                gemm_panels(have, D, n, panels, strips + r * D, 0, dhead + v * D, D, at || r);
                gemm(n, D, have, p, ldp, backward + v * D, 0, dxn + r * D, D, b > 0);
            }
        }
        norm_backward(rows, D, x + at * D, norm, rstd, dxn, NULL, dx + at * D, dnorm);
    }
    return 0;
}
