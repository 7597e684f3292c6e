# Finished runs to losses.csv to laws.
rule losses:
    input:
        gathered("losses"),
    output:
        f"{W.out}/losses.csv",
    log:
        f"{W.out}/logs/losses.log",
    localrule: True
    message:
        "Gather losses"
    shell:
        "exec upcycle losses &> {log:q}"


rule fit:
    input:
        fit_inputs,
    output:
        f"{W.out}/fits/{{fit}}.json",
    log:
        f"{W.out}/logs/fits/{{fit}}.log",
    wildcard_constraints:
        fit="|".join(W.names("fits")) or "no-such-fit",
    resources:
        **RESOURCES["small"],
    message:
        "Fit {wildcards.fit}"
    shell:
        "exec upcycle fit {wildcards.fit:q} &> {log:q}"
