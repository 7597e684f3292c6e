# Finished runs to losses.csv to laws.
rule losses:
    input:
        product_inputs("losses"),
    output:
        W.product("losses").outputs,
    log:
        f"{W.out}/logs/losses.log",
    localrule: True
    params:
        key=product_key("losses"),
    message:
        "Gather losses"
    shell:
        "upcycle losses --out {output} --key {params.key} 2> {log}"


rule fit:
    input:
        fit_inputs,
    output:
        f"{W.out}/fits/{{fit}}.json",
    log:
        f"{W.out}/logs/fits/{{fit}}.log",
    wildcard_constraints:
        fit="|".join(W.names("fits")) or "no-such-fit",
    params:
        key=fit_key,
    message:
        "Fit {wildcards.fit}"
    shell:
        "upcycle fit {wildcards.fit} --key {params.key} 2> {log}"
