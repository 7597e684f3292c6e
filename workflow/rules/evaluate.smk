# Held-out loss on other texts; a run's own held-out loss is measured by the job that trained it.
rule evaluate:
    input:
        evaluation_inputs,
    output:
        f"{RESULTS}/runs/{{run}}/evaluations/{{evaluation}}.json",
    log:
        f"{RESULTS}/logs/evaluate/{{run}}.{{evaluation}}.log",
    wildcard_constraints:
        evaluation="|".join(sorted({text for _, text in EVALUATIONS})) or "no-such-text",
    resources:
        **RESOURCES["evaluate"],
    params:
        name=evaluation_name,
    message:
        "Evaluate {wildcards.run} on {wildcards.evaluation}"
    shell:
        "exec upcycle evaluate {wildcards.run:q} {params.name:q} &> {log:q}"


if W.study.evaluations:

    rule evaluations:
        input:
            gathered("evaluations"),
        output:
            f"{W.out}/evaluations.csv",
        log:
            f"{W.out}/logs/evaluations.log",
        localrule: True
        message:
            "Gather evaluations on other texts"
        shell:
            "exec upcycle evaluations &> {log:q}"
