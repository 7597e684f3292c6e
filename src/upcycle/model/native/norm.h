/* RMSNorm of rows of width D: y = x * rstd * w, rstd = 1 / sqrt(mean(x^2) + eps). D is a multiple of LANES. */

/* Rows of x to y; rstd (rows) is kept for the backward pass. */
static void norm_forward(long rows, long D, const float *x, const float *w, float eps, float *y, float *rstd) {
    for (long r = 0; r < rows; r++, x += D, y += D) {
        vec squares = splat(0.0f);
        for (long d = 0; d < D; d += LANES) squares += load(x + d) * load(x + d);
        rstd[r] = 1.0f / sqrtf(sum(squares) / D + eps);
        for (long d = 0; d < D; d += LANES) store(y + d, load(x + d) * rstd[r] * load(w + d));
    }
}

/* y again from the rstd that was kept. */
static void norm_again(long rows, long D, const float *x, const float *w, const float *rstd, float *y) {
    for (long r = 0; r < rows; r++, x += D, y += D)
        for (long d = 0; d < D; d += LANES) store(y + d, load(x + d) * rstd[r] * load(w + d));
}

/* dx = residual (may be NULL) + gradient through the norm of dy; dw is added to. */
static void norm_backward(long rows, long D, const float *x, const float *w, const float *rstd, const float *dy,
                          const float *residual, float *dx, float *dw) {
    for (long r = 0; r < rows; r++, x += D, dy += D, dx += D) {
        vec dots = splat(0.0f);
        for (long d = 0; d < D; d += LANES) dots += load(dy + d) * load(w + d) * load(x + d);
        float s = rstd[r], share = sum(dots) / D * s * s * s;
        for (long d = 0; d < D; d += LANES) {
            vec g = load(dy + d) * s;
            store(dw + d, load(dw + d) + g * load(x + d));
            vec through = g * load(w + d) - load(x + d) * share;
            if (residual) through += load(residual + r * D + d);
            store(dx + d, through);
        }
    }
}
