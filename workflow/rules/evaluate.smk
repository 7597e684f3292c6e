# Held-out loss on other texts; a run's own held-out loss is measured by the job that trained it.
rule evaluate:
    input:
        evaluation_inputs,
    output:
        f"{RESULTS}/runs/{{run}}/evaluations/{{evaluation}}.json",
    log:
        f"{RESULTS}/logs/evaluate/{{run}}.{{evaluation}}.log",
    message:
        "Evaluate {wildcards.run} on {wildcards.evaluation}"
    shell:
        "upcycle evaluate {wildcards.run} {wildcards.evaluation} 2> {log}"


if W.study.evaluations:

    rule evaluations:
        input:
            product_inputs("evaluations"),
        output:
            W.product("evaluations").outputs,
        log:
            f"{W.out}/logs/evaluations.log",
        localrule: True
        params:
            key=product_key("evaluations"),
        message:
            "Gather evaluations on other texts"
        shell:
            "upcycle evaluations --out {output} --key {params.key} 2> {log}"
