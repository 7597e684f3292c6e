/* The router's decisions: probabilities over all experts, the K largest, their gates. Rows of a few numbers each, for
 * which a library's softmax goes number by number. Gates: over the chosen logits (TOPK_SOFTMAX; the renormalised gate is
 * the same function), or the chosen probabilities as they are (SOFTMAX_TOPK). */

/* Softmax of one row over its first `seen` numbers, the rest of `width` zero: numbers become e^(number - max), their
 * sum's inverse is returned and their log-sum-exp kept. */
static float softmax_row(float *row, long seen, long width, float *lse) {
    vec top = splat(-INFINITY), total = splat(0.0f);
    for (long j = 0; j < width; j += LANES) top = larger(top, keep_first(seen - j, load(row + j), splat(-INFINITY)));
    float max = largest(top);
    for (long j = 0; j < width; j += LANES) {
        vec e = keep_first(seen - j, vexp(load(row + j) - max), splat(0.0f));
        store(row + j, e);
        total += e;
    }
    float whole = sum(total);
    *lse = max + logf(whole);
    return 1.0f / whole;
}

enum { TOPK_SOFTMAX, SOFTMAX_TOPK };

/* ids, gates (T x K), largest first and of equals the first; probs and their logarithms (T x E), from logits (T x E). */
void upcycle_route_forward(long T, long E, long K, long gate, const float *logits, int64_t *ids, float *gates,
                           float *probs, float *logs) {
    float *row = scratch(XN, padded(E));
    for (long t = 0; t < T; t++, logits += E, ids += K, gates += K, probs += E, logs += E) {
        float lse, inverse;
        for (long k = 0; k < K; k++) {
            long best = -1;
            for (long e = 0; e < E; e++) {
                int taken = 0; /* marked by its id: a logit may itself be -inf, and no expert is chosen twice */
                for (long before = 0; before < k; before++) taken |= ids[before] == e;
                if (taken) continue;
                int nan = logits[e] != logits[e]; /* comes first, or the loss would hide it */
                if (best < 0 || logits[e] > logits[best] || nan) best = e;
            }
            ids[k] = best;
        }
        memcpy(row, logits, E * sizeof(float));
        inverse = softmax_row(row, E, padded(E), &lse);
        for (long e = 0; e < E; e++) {
            probs[e] = row[e] * inverse;
            logs[e] = logits[e] - lse;
        }
        float chosen = 0.0f;
        for (long k = 0; k < K; k++) chosen += row[ids[k]];
        for (long k = 0; k < K; k++) gates[k] = gate == TOPK_SOFTMAX ? row[ids[k]] / chosen : probs[ids[k]];
    }
}

/* dlogits from the gradients of gates and probabilities. */
void upcycle_route_backward(long T, long E, long K, long gate, const int64_t *ids, const float *gates,
                            const float *probs, const float *dgates, const float *dprobs, float *dlogits) {
    for (long t = 0; t < T; t++, ids += K, gates += K, dgates += K, probs += E, dprobs += E, dlogits += E) {
        float mean = 0.0f, mean_gate = 0.0f;
        for (long e = 0; e < E; e++) mean += probs[e] * dprobs[e];
        for (long k = 0; k < K; k++) mean_gate += gates[k] * dgates[k];
        if (gate == SOFTMAX_TOPK) mean += mean_gate, mean_gate = 0.0f;
        for (long e = 0; e < E; e++) dlogits[e] = probs[e] * (dprobs[e] - mean);
        for (long k = 0; k < K; k++) dlogits[ids[k]] += gates[k] * (dgates[k] - mean_gate);
    }
}
