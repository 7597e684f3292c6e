/* Layers of the decoder on one CPU core in float32, forward and backward: what `layers.py` calls.
 *
 * Between two matrix products nothing leaves the cache that need not: norm, rotation, softmax, SwiGLU and the
 * gradients of each are computed on the rows at hand. Arrays are dense, row by row; a weight is (out x in). */
#include "simd.h"

#include "gemm.h"
#include "norm.h"

#include "attention.h"
#include "loss.h"
#include "mlp.h"

void upcycle_norm_forward(long N, long D, float eps, const float *x, const float *norm, float *y, float *rstd) {
    norm_forward(N, D, x, norm, eps, y, rstd);
}

/* dnorm must be zero at first. */
void upcycle_norm_backward(long N, long D, const float *x, const float *norm, const float *rstd, const float *dy,
                           float *dx, float *dnorm) {
    norm_backward(N, D, x, norm, rstd, dy, NULL, dx, dnorm);
}
