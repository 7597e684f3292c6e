/* Layers of the decoder on one CPU core in float32, forward and backward: what `layers.py` calls.
 *
 * Between two matrix products nothing leaves the cache that need not: norm, rotation, softmax, SwiGLU and the
 * gradients of each are computed on the rows at hand. Arrays are dense, row by row; a weight is (out x in). */
#include "simd.h"

#include "gemm.h"
#include "norm.h"

#include "attention.h"
#include "mlp.h"
#include "loss.h"
#include "route.h"

void upcycle_norm_forward(long N, long D, float eps, const float *x, const float *norm, float *y, float *rstd) {
    norm_forward(N, D, x, norm, eps, y, rstd);
}

/* y (N x E) = x W^T for a narrow W (E x D): a router, whose few columns a library's product is not made for. */
void upcycle_narrow_forward(long N, long D, long E, const float *x, const float *w, float *y) {
    long Ep = padded(E), chunk = CHUNK;
    float *packed = scratch(PACKED, Ep * D), *rows = scratch(XN, chunk * Ep);
    pack(D, 0, D, E, w, 1, D, packed);
    for (long at = 0; at < N; at += chunk) {
        long n = least(chunk, N - at);
        gemm(n, Ep, D, x + at * D, D, packed, 0, rows, Ep, 0);
        for (long r = 0; r < n; r++) memcpy(y + (at + r) * E, rows + r * Ep, E * sizeof(float));
    }
}

void upcycle_narrow_backward(long N, long D, long E, const float *x, const float *w, const float *dy, float *dx,
                             float *dw) {
    gemm(N, D, E, dy, E, w, D, dx, D, 0);
    for (long at = 0, chunk = CHUNK; at < N; at += chunk) {
        long n = least(chunk, N - at);
        gemm_tn(E, D, n, dy + at * E, E, x + at * D, D, dw, D, at > 0);
    }
}

/* dnorm must be zero at first. */
void upcycle_norm_backward(long N, long D, const float *x, const float *norm, const float *rstd, const float *dy,
                           float *dx, float *dnorm) {
    norm_backward(N, D, x, norm, rstd, dy, NULL, dx, dnorm);
}
