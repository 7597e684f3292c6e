/* The end of the model: norm, output matrix, cross-entropy. Logits exist for a few rows at a time and their gradient
 * takes their place, so that N x V numbers are never written to memory. */

/* Loss of each token in nats (N). With dx (N x D): also the gradients of `share` x the sum of the losses, which go into
 * dx, dnorm (zero at first) and dhead (V x D). Returns 0, or 1 + the first row whose target is no token. */
long upcycle_loss(long N, long D, long V, float eps, float share, const float *x, const float *norm, const float *head,
                  const int64_t *targets, float *losses, float *dx, float *dnorm, float *dhead) {
    long Vp = padded(V), ld = Vp + PAD, chunk = least(20 * ROWS, 524288 / Vp / ROWS * ROWS);
    if (chunk < 4 * ROWS) chunk = 4 * ROWS;
    float *xn = scratch(XN, chunk * D), *logits = scratch(WIDE, chunk * ld), *dxn = scratch(NARROW, chunk * D);
    float *forward = scratch(PACKED, Vp * D), *backward = scratch(PACKED2, V * D), *rstd = scratch(OUT, chunk);
    pack(D, V, head, 1, D, forward);
    if (dx) pack(V, D, head, D, 1, backward);
    for (long at = 0; at < N; at += chunk) {
        long rows = least(chunk, N - at);
        norm_forward(rows, D, x + at * D, norm, eps, xn, rstd);
        gemm(rows, Vp, D, xn, D, 1, forward, 0, logits, ld, 0);
        for (long r = 0; r < rows; r++) {
            float *row = logits + r * ld, lse;
            int64_t target = targets[at + r];
            if (target < 0 || target >= V) return at + r + 1;
            float wanted = row[target], inverse = softmax_row(row, V, Vp, &lse);
            losses[at + r] = lse - wanted;
            if (!dx) continue;
            for (long v = 0; v < Vp; v += LANES) store(row + v, load(row + v) * (inverse * share));
            row[target] -= share;
        }
        if (!dx) continue;
        gemm_tn(V, D, rows, logits, ld, xn, D, dhead, D, at > 0);
        gemm(rows, D, V, logits, ld, 1, backward, 0, dxn, D, 0);
        norm_backward(rows, D, x + at * D, norm, rstd, dxn, NULL, dx + at * D, dnorm);
    }
    return 0;
}
