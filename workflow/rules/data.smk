# Text to tokens. A token set's name is its recipe; changed text under the same name is refused by fingerprint.
# A large corpus is made in steps, each a job of one CPU; this job merges them, and writes the manifest last.
rule tokenize:
    input:
        tokenizer_source,
        tokenize_inputs,
    output:
        f"{RESULTS}/tokens/{{tokens}}/manifest.json",
    log:
        f"{RESULTS}/logs/tokenize/{{tokens}}.log",
    wildcard_constraints:
        tokens=W.tokens_not_made,
    resources:
        **RESOURCES["tokenize"],
    message:
        "Tokenise {wildcards.tokens}"
    shell:
        "exec upcycle tokenize {wildcards.tokens:q} &> {log:q}"


rule tokenize_step:
    input:
        tokenizer_source,
        step_inputs,
    output:
        step_path("{tokens}", "{step}"),
    log:
        f"{RESULTS}/logs/tokenize/{{tokens}}/{{step}}.log",
    wildcard_constraints:
        step=r"read-\d+|prepare|encode-\d+",
    resources:
        **RESOURCES["tokenize_step"],
    message:
        "Tokenise {wildcards.tokens}: {wildcards.step}"
    shell:
        "exec upcycle tokenize {wildcards.tokens:q} --step {wildcards.step:q} &> {log:q}"
