/* The router's decisions: probabilities over all experts, the K largest, their gates. Rows of a few numbers each, for
 * which a library's softmax goes number by number. Gates: over the chosen logits (TOPK_SOFTMAX; the renormalised gate is
 * the same function), or the chosen probabilities as they are (SOFTMAX_TOPK). */

enum { TOPK_SOFTMAX, SOFTMAX_TOPK };

/* ids, gates (T x K), largest first and of equals the first; probs and their logarithms (T x E), from logits (T x E). */
void upcycle_route_forward(long T, long E, long K, long gate, const float *logits, int64_t *ids, float *gates,
                           float *probs, float *logs) {
    float *row = scratch(XN, padded(E));
    for (long t = 0; t < T; t++, logits += E, ids += K, gates += K, probs += E, logs += E) {
        float lse, inverse;
        memcpy(row, logits, E * sizeof(float));
        for (long k = 0; k < K; k++) {
            long best = 0;
            for (long e = 1; e < E; e++)
                if (row[e] > row[best] || row[e] != row[e]) best = e; /* NaN first, or the loss would hide it */
            ids[k] = best;
            row[best] = -INFINITY;
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
