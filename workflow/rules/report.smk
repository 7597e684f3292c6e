# The page that people read, of any study that upcycles. (`snakemake --report` builds Snakemake's own beside it.)
if "report" in W.products:

    rule report:
        input:
            product_inputs("report"),
        output:
            W.products["report"].outputs,
        log:
            f"{W.out}/logs/report.log",
        resources:
            **RESOURCES["small"],
        message:
            "Write the report"
        shell:
            "exec upcycle report &> {log:q}"
