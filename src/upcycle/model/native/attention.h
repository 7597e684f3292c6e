/* A whole attention layer: out = x + softmax(causal(q k^T / sqrt(C))) v Wo^T of the normed x, with rotary positions.
 *
 * A row of qkv has the H heads of queries, then G of keys, then G of values, each C wide; query h uses key h % G
 * (model/stacks.py). A head of keys and values is prepared once for all its queries, whose gradients add up in it.
 * Sequences are taken in groups of about GROUP rows, so that what lies between two products stays in the cache. Scores
 * exist for BLOCK queries of one head at a time; the backward pass computes them again from their log-sum-exp. */

enum { GROUP = 256, BLOCK = 48 };

/* Q width of all queries, K of all keys, W of a row of qkv; Cp is C in whole vectors, ld of a row of S keys. */
typedef struct { long S, H, G, C, Q, K, W, Cp, ld; } Shape;

static Shape shape_of(long S, long H, long G, long C) {
    long ld = padded(S) + LANES; /* + LANES: powers of two apart share cache sets */
    return (Shape){S, H, G, C, H * C, G * C, (H + 2 * G) * C, padded(C), ld};
}

/* A head's rows (S x C at stride `step`) to rows of Cp, as they are. */
static void copy_head(Shape s, const float *from, long step, float *to) {
    for (long i = 0; i < s.S; i++, from += step, to += s.Cp) {
        memcpy(to, from, s.C * sizeof(float));
        for (long c = s.C; c < s.Cp; c++) to[c] = 0.0f;
    }
}

/* One row's halves turned by its angles (cosines, sines: C/2) and scaled. */
INLINE void turn_row(long half, const float *from, const float *cos, const float *sin, float sign, float scale,
                     float *to) {
    long c = 0;
    for (; c + LANES <= half; c += LANES) {
        vec a = load(from + c), b = load(from + c + half), co = load(cos + c), si = load(sin + c) * sign;
        store(to + c, (a * co - b * si) * scale);
        store(to + c + half, (b * co + a * si) * scale);
    }
    for (; c < half; c++) {
        float a = from[c], b = from[c + half], co = cos[c], si = sin[c] * sign;
        to[c] = (a * co - b * si) * scale;
        to[c + half] = (b * co + a * si) * scale;
    }
}

/* The same, turned by their angles (tables S x C/2) and scaled. */
static void turn_head(Shape s, const float *from, const float *cos, const float *sin, float scale, float *to) {
    for (long i = 0, half = s.C / 2; i < s.S; i++, from += s.W, to += s.Cp, cos += half, sin += half) {
        turn_row(half, from, cos, sin, 1.0f, scale, to);
        for (long c = s.C; c < s.Cp; c++) to[c] = 0.0f;
    }
}

/* The way back for gradients: turned by the negative angles, rows of Cp to S x C at stride W. */
static void turn_back(Shape s, const float *from, const float *cos, const float *sin, float scale, float *to) {
    for (long i = 0, half = s.C / 2; i < s.S; i++, from += s.Cp, to += s.W, cos += half, sin += half)
        turn_row(half, from, cos, sin, -1.0f, scale, to);
}

/* Rows (S x Cp) to columns (C x ld), zero beyond S. */
static void to_columns(Shape s, const float *rows, float *columns) {
    transpose(s.S, s.C, rows, s.Cp, columns, s.ld);
    for (long c = 0; c < s.C; c++)
        for (long i = s.S; i < s.ld; i++) columns[c * s.ld + i] = 0.0f;
}

/* Softmax of a block's rows: row i sees all scores before `first` and i + 1 from there on. Scores become
 * e^(score - max), 0 where not seen; inverses of their sums, and log-sum-exps. All rows take as many turns of each
 * loop: rows of their own lengths would be mispredicted at every end. */
static void softmax_block(long rows, long first, long width, float *scores, long ld, float *inverse, float *lse) {
    float *row = scores, total[BLOCK];
    for (long i = 0; i < rows; i++, row += ld) { /* a loop of its own: no row waits for its largest score */
        vec top = splat(-INFINITY);
        for (long j = 0; j < first; j += LANES) top = larger(top, load(row + j));
        for (long j = first; j < width; j += LANES)
            top = larger(top, keep_first(first + i + 1 - j, load(row + j), splat(-INFINITY)));
        lse[i] = largest(top);
    }
    row = scores;
    for (long i = 0; i < rows; i++, row += ld) {
        vec all = splat(0.0f), max = splat(lse[i]);
        for (long j = 0; j < first; j += LANES) {
            vec e = vexp(load(row + j) - max);
            store(row + j, e);
            all += e;
        }
        for (long j = first; j < width; j += LANES) {
            vec e = keep_first(first + i + 1 - j, vexp(load(row + j) - max), splat(0.0f));
            store(row + j, e);
            all += e;
        }
        total[i] = sum(all);
    }
    for (long i = 0; i < rows; i++) {
        inverse[i] = 1.0f / total[i];
        lse[i] += logf(total[i]);
    }
}

/* One head of queries of one sequence, of keys in columns and values in rows: y (S x C at stride Q) and its log-sum-exps
 * (S). */
static void head_forward(Shape s, const float *query, const float *kt, const float *v, const float *cos,
                         const float *sin, float *y, float *lse) {
    float *q = scratch(QUERY, s.S * s.Cp);
    float *scores = scratch(SCORES, BLOCK * s.ld), *out = scratch(OUT, BLOCK * s.Cp);
    turn_head(s, query, cos, sin, 1.0f / sqrtf(s.C), q);
    for (long first = 0; first < s.S; first += BLOCK) {
        long rows = least(BLOCK, s.S - first), seen = first + rows, width = padded(seen);
        gemm(rows, width, s.C, q + first * s.Cp, s.Cp, kt, s.ld, scores, s.ld, 0);
        float inverse[BLOCK];
        softmax_block(rows, first, width, scores, s.ld, inverse, lse + first);
        gemm(rows, s.Cp, seen, scores, s.ld, v, s.Cp, out, s.Cp, 0);
        for (long i = 0; i < rows; i++)
            for (long c = 0; c < s.C; c++) y[(first + i) * s.Q + c] = out[i * s.Cp + c] * inverse[i];
    }
}

/* One head of keys and values of one sequence with all its queries; qkv, y and lse begin at its first query. */
static void group_forward(Shape s, const float *qkv, const float *cos, const float *sin, float *y, float *lse) {
    float *k = scratch(DKEY, s.S * s.Cp), *v = scratch(VALUE, s.S * s.Cp), *kt = scratch(KEY, s.C * s.ld);
    turn_head(s, qkv + s.Q, cos, sin, 1.0f, k);
    copy_head(s, qkv + s.Q + s.K, s.W, v);
    to_columns(s, k, kt);
    for (long h = 0; h < s.H; h += s.G, qkv += s.K, y += s.K, lse += s.G * s.S)
        head_forward(s, qkv, kt, v, cos, sin, y, lse);
}

static float dot(long n, const float *a, const float *b) {
    vec total = splat(0.0f);
    long i = 0;
    for (; i + LANES <= n; i += LANES) total += load(a + i) * load(b + i);
    float rest = sum(total);
    for (; i < n; i++) rest += a[i] * b[i];
    return rest;
}

/* Gradients of a block's scores in the place of those of its probabilities, which take the place of the scores. */
static void softmax_block_backward(Shape s, long rows, long first, long width, const float *y, const float *dout,
                                   const float *lse, float *p, float *ds) {
    for (long i = 0; i < rows; i++, p += s.ld, ds += s.ld) {
        float delta = dot(s.C, y + i * s.Q, dout + i * s.Cp);
        for (long j = 0; j < first; j += LANES) {
            vec e = vexp(load(p + j) - lse[i]);
            store(p + j, e);
            store(ds + j, e * (load(ds + j) - delta));
        }
        for (long j = first; j < width; j += LANES) {
            vec e = keep_first(first + i + 1 - j, vexp(load(p + j) - lse[i]), splat(0.0f));
            store(p + j, e);
            store(ds + j, e * (load(ds + j) - delta));
        }
    }
}

/* Gradients of one head of keys and values and of its queries, in dqkv from dy (S x C at stride Q). */
static void group_backward(Shape s, const float *qkv, const float *cos, const float *sin, const float *y,
                           const float *lse, const float *dy, float *dqkv) {
    size_t rows_size = s.S * s.Cp, columns_size = s.C * s.ld;
    float *q = scratch(QUERY, rows_size), *k = scratch(KEY, rows_size + columns_size), *kt = k + rows_size;
    float *v = scratch(VALUE, rows_size + columns_size), *vt = v + rows_size, *dout = scratch(OUT, rows_size);
    float *dq = scratch(DQUERY, rows_size), *dk = scratch(DKEY, rows_size), *dv = scratch(DVALUE, rows_size);
    float *p = scratch(SCORES, BLOCK * s.ld), *ds = scratch(DSCORES, BLOCK * s.ld), scale = 1.0f / sqrtf(s.C);
    turn_head(s, qkv + s.Q, cos, sin, 1.0f, k);
    copy_head(s, qkv + s.Q + s.K, s.W, v);
    to_columns(s, k, kt);
    to_columns(s, v, vt);
    long last = (s.S - 1) / BLOCK * BLOCK;
    for (long h = 0, at = 0; h < s.H; h += s.G, at += s.K, lse += s.G * s.S) {
        turn_head(s, qkv + at, cos, sin, scale, q);
        copy_head(s, dy + at, s.Q, dout);
        for (long first = last; first >= 0; first -= BLOCK) {
            long rows = least(BLOCK, s.S - first), seen = first + rows, width = padded(seen);
            int add = h > 0 || first != last;
            gemm(rows, width, s.C, q + first * s.Cp, s.Cp, kt, s.ld, p, s.ld, 0);
            gemm(rows, width, s.C, dout + first * s.Cp, s.Cp, vt, s.ld, ds, s.ld, 0);
            softmax_block_backward(s, rows, first, width, y + first * s.Q + at, dout + first * s.Cp, lse + first, p, ds);
            gemm_tn(seen, s.Cp, rows, p, s.ld, dout + first * s.Cp, s.Cp, dv, s.Cp, add);
            gemm_tn(seen, s.Cp, rows, ds, s.ld, q + first * s.Cp, s.Cp, dk, s.Cp, add);
            gemm(rows, s.Cp, seen, ds, s.ld, k, s.Cp, dq + first * s.Cp, s.Cp, 0);
        }
        turn_back(s, dq, cos, sin, scale, dqkv + at);
    }
    turn_back(s, dk, cos, sin, 1.0f, dqkv + s.Q);
    for (long i = 0; i < s.S; i++) memcpy(dqkv + i * s.W + s.Q + s.K, dv + i * s.Cp, s.C * sizeof(float));
}

/* x, out (B S x D), wqkv (W x D), wo (D x Q), cos, sin (S x C/2); kept: qkv (B S x W), y (B S x Q), lse (B x H x S),
 * rstd. */
void upcycle_attention_forward(long B, long S, long D, long H, long G, long C, float eps, const float *x,
                               const float *norm, const float *wqkv, const float *wo, const float *cos,
                               const float *sin, float *out, float *qkv, float *y, float *lse, float *rstd) {
    Shape s = shape_of(S, H, G, C);
    long W = s.W, Q = s.Q, group = GROUP / S ? GROUP / S : 1;
    float *xn = scratch(XN, group * S * D), *into = scratch(PACKED, W * D), *back = scratch(PACKED2, Q * D);
    pack(D, 0, D, W, wqkv, 1, D, into);
    pack(Q, 0, Q, D, wo, 1, Q, back);
    for (long b = 0; b < B; b += group) {
        long rows = least(group, B - b) * S, at = b * S;
        norm_forward(rows, D, x + at * D, norm, eps, xn, rstd + at);
        gemm(rows, W, D, xn, D, into, 0, qkv + at * W, W, 0);
        for (long i = at; i < at + rows; i += S)
            for (long g = 0; g < G; g++)
                group_forward(s, qkv + i * W + g * C, cos, sin, y + i * Q + g * C, lse + i * H + g * S);
        memcpy(out + at * D, x + at * D, rows * D * sizeof(float));
        gemm(rows, D, Q, y + at * Q, Q, back, 0, out + at * D, D, 1);
    }
}

/* Gradients of all that goes in, from that of out; dnorm must be zero at first. */
void upcycle_attention_backward(long B, long S, long D, long H, long G, long C, const float *x, const float *norm,
                                const float *wqkv, const float *wo, const float *cos, const float *sin,
                                const float *qkv, const float *y, const float *lse, const float *rstd,
                                const float *dout, float *dx, float *dnorm, float *dwqkv, float *dwo) {
    Shape s = shape_of(S, H, G, C);
    long W = s.W, Q = s.Q, group = GROUP / S ? GROUP / S : 1, wider = Q > D ? Q : D;
    float *xn = scratch(XN, group * S * D), *dqkv = scratch(WIDE, group * S * W);
    float *dy = scratch(NARROW, group * S * wider), *into = scratch(PACKED, W * D), *back = scratch(PACKED2, Q * D);
    float *panels = scratch(PANELLED, group * S * (W > D ? W : D)), *strips = scratch(STRIPPED, group * S * wider);
    pack(W, 0, W, D, wqkv, D, 1, into);
    pack(D, 0, D, Q, wo, Q, 1, back);
    for (long b = 0; b < B; b += group) {
        long rows = least(group, B - b) * S, at = b * S;
        gemm(rows, Q, D, dout + at * D, D, back, 0, dy, Q, 0);
        to_panels(rows, D, dout + at * D, D, panels);
        pack(rows, 0, rows, Q, y + at * Q, Q, 1, strips);
        gemm_panels(D, Q, rows, panels, strips, 0, dwo, Q, b > 0);
        for (long i = 0; i < rows; i += S)
            for (long g = 0; g < G; g++) {
                long first = g * C, query = i * Q + first;
                group_backward(s, qkv + (at + i) * W + first, cos, sin, y + at * Q + query, lse + (at + i) * H + g * S,
                               dy + query, dqkv + i * W + first);
            }
        norm_again(rows, D, x + at * D, norm, rstd + at, xn);
        to_panels(rows, W, dqkv, W, panels);
        pack(rows, 0, rows, D, xn, D, 1, strips);
        gemm_panels(W, D, rows, panels, strips, 0, dwqkv, D, b > 0);
        gemm(rows, D, W, dqkv, W, into, 0, dy, D, 0);
        norm_backward(rows, D, x + at * D, norm, rstd + at, dy, dout + at * D, dx + at * D, dnorm);
    }
}
