# Text to tokens. A token set's name is its recipe; changed text under the same name is refused by fingerprint.
rule tokenize:
    input:
        tokenizer_source,
    output:
        f"{RESULTS}/tokens/{{tokens}}/manifest.json",
    log:
        f"{RESULTS}/logs/tokenize/{{tokens}}.log",
    resources:
        **RESOURCES["tokenize"],
    message:
        "Tokenise {wildcards.tokens}"
    shell:
        "exec upcycle tokenize {wildcards.tokens:q} &> {log:q}"
