# Figures and tables: functions of upcycle.paper, found by name. Each also has a target of its own: `snakemake figure4`.
rule figure:
    input:
        figure_inputs,
    output:
        report(
            f"{W.out}/figures/{{figure}}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        f"{W.out}/figures/{{figure}}.pdf",
    log:
        f"{W.out}/logs/figures/{{figure}}.log",
    wildcard_constraints:
        figure="|".join(W.names("figures")) or "no-such-figure",
    resources:
        **RESOURCES["small"],
    params:
        caption=figure_caption,
    message:
        "Draw {wildcards.figure}"
    shell:
        "exec upcycle figure {wildcards.figure:q} &> {log:q}"


rule table:
    input:
        table_inputs,
    output:
        report(
            f"{W.out}/tables/{{table}}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        f"{W.out}/tables/{{table}}.md",
    log:
        f"{W.out}/logs/tables/{{table}}.log",
    wildcard_constraints:
        table="|".join(W.names("tables")) or "no-such-table",
    resources:
        **RESOURCES["small"],
    params:
        caption=table_caption,
    message:
        "Set {wildcards.table}"
    shell:
        "exec upcycle table {wildcards.table:q} &> {log:q}"


for figure_name in W.names("figures"):

    rule:
        name:
            figure_name
        input:
            f"{W.out}/figures/{figure_name}.svg",
            f"{W.out}/figures/{figure_name}.pdf",
        localrule: True


for table_name in W.names("tables"):

    rule:
        name:
            table_name
        input:
            f"{W.out}/tables/{table_name}.csv",
            f"{W.out}/tables/{table_name}.md",
        localrule: True
