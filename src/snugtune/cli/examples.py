"""Real examples of each command, shown below its ``--help``; a test parses every one of them.

A command is a list of lines; the second and later ones are continued by a backslash.
"""

from __future__ import annotations

from rich.markup import escape

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "fit": (
        ("A spreadsheet; its text and label column are found", "snugtune fit complaints.xlsx -o runs/issue"),
        (
            "Columns by name, a test table, a limit of time and money",
            "snugtune fit complaints.csv --text narrative --label issue \\\n"
            "  --test may.csv --max-time 90min --max-cost 2 --price 0.35 -o runs/issue",
        ),
        (
            "The recipe everyone copies: XLM-RoBERTa-large with LoRA; on two GPUs",
            "snugtune fit complaints.csv --label Sub-issue --model xlm-roberta-large \\\n"
            "  --r 16 --target-modules query,value --devices 2 -o runs/recipe",
        ),
        (
            "Several labels a text, and what reviewers decided since",
            "snugtune fit tickets.csv --label topics --label-separator ';' \\\n"
            "  --add runs/topics.reviews.db --overwrite -o runs/topics",
        ),
    ),
    "search": (
        (
            "Twenty trials, the best of which is kept",
            "snugtune search complaints.csv --trials 20 -o runs/search",
        ),
        (
            "Two methods, within 5 USD at 0.35 USD an hour",
            "snugtune search complaints.csv --method lora,full \\\n  --max-cost 5 --price 0.35",
        ),
        (
            "Four at once; rank and epochs are not varied",
            "snugtune search complaints.csv --processes 4 --r 16 --epochs 3 \\\n"
            "  --max-time 2h -o runs/search",
        ),
    ),
    "audit": (
        ("What is in the table, and which labels look wrong", "snugtune audit complaints.csv -o audit"),
        ("By words alone, without a model", "snugtune audit complaints.csv --no-frozen-pass -o audit"),
        (
            "Then train with the labels you corrected in its spreadsheet",
            "snugtune fit complaints.csv --corrections audit/label_issues.xlsx",
        ),
    ),
    "select": (
        (
            "No label yet: a hundred typical texts to begin with",
            "snugtune select complaints.xlsx --count 100 -o first.xlsx",
        ),
        (
            "Some rows are labelled: the next ones, from the same table",
            "snugtune select complaints.xlsx --label Issue -o next.xlsx",
        ),
        ("By a finished run", "snugtune select new.csv --run runs/issue --count 200 -o next.xlsx"),
        (
            "Then train with what you labelled, too",
            "snugtune fit complaints.csv --label Issue --add next.xlsx -o runs/more",
        ),
    ),
    "weak-label": (
        (
            "Label by rules, and see what they cover",
            "snugtune weak-label new.csv --rules rules.yaml -o weak.xlsx",
        ),
        (
            "Rules beside labels that are known: how far they agree",
            "snugtune weak-label complaints.xlsx --label Issue --rules rules.yaml \\\n  -o weak.csv",
        ),
    ),
    "evaluate": (
        ("Score a run on this month's labelled rows", "snugtune evaluate runs/issue may.csv"),
        (
            "Another label column, and every row with its prediction",
            "snugtune evaluate runs/issue may.xlsx --label Category -o scored.xlsx",
        ),
    ),
    "plan": (
        (
            "A large model on four cards: memory, time and price",
            "snugtune plan --model xlm-roberta-large --labels 214 --rows 120000 \\\n  --gpu t4,v100,l4,h100",
        ),
        (
            "Your own table, on 6 GiB, for 2 USD at most",
            "snugtune plan complaints.csv --model xlm-roberta-base \\\n"
            "  --memory 6GiB --max-cost 2 --price 0.35",
        ),
        (
            "Four cards that divide a model, and what their peak consists of",
            "snugtune plan --model xlm-roberta-large --labels 20 --gpu l4 --devices 4 \\\n"
            "  --sharding full --picture peak.svg",
        ),
        ("The well-known recipe beside our plan", "snugtune plan --recipe blog"),
    ),
    "doctor": (
        ("Can this machine train?", "snugtune doctor"),
        ("For a program", "snugtune doctor --json"),
    ),
    "demo": (
        ("The whole way on invented complaints, in minutes", "snugtune demo"),
        ("Quicker, elsewhere", "snugtune demo --epochs 1 -o /tmp/demo"),
    ),
    "sample": (
        ("A workbook of invented complaints", "snugtune sample complaints.xlsx"),
        ("A larger one, others", "snugtune sample complaints.csv --rows 20000 --seed 7"),
    ),
    "data cfpb": (
        (
            "The newest complaints since a day",
            "snugtune data cfpb --since 2024-01-01 --rows 20000 -o complaints.parquet",
        ),
        (
            "Those of one year, as a workbook",
            "snugtune data cfpb --since 2023-01-01 --until 2023-12-31 --rows 5000 \\\n  -o complaints.xlsx",
        ),
    ),
    "predict": (
        (
            "A workbook comes back as it was, with predictions",
            "snugtune predict runs/issue new.xlsx -o done.xlsx",
        ),
        (
            "From one database table into another",
            "snugtune predict runs/issue 'sqlite:///crm.db?table=inbox' \\\n"
            "  -o 'sqlite:///crm.db?table=classified'",
        ),
        (
            "Through a pipe, in faster arithmetic",
            "snugtune predict runs/issue - -o - --dtype bfloat16 < new.csv > done.csv",
        ),
        (
            "Many files of a bucket, several at a time, with Ray",
            "snugtune predict runs/issue 's3://bank/complaints/*.parquet' \\\n"
            "  -o s3://bank/classified --engine ray --workers 8",
        ),
    ),
    "serve": (
        ("One run, for this machine", "snugtune serve runs/issue"),
        (
            "Two runs, for others, who need the key",
            "snugtune serve issue=runs/issue topic=runs/topic \\\n"
            "  --host 0.0.0.0 --port 8080 --key-file key.txt",
        ),
    ),
    "export": (
        ("For pipeline and text-embeddings-inference", "snugtune export runs/issue -o issue-model"),
        ("For ONNX Runtime, in int8", "snugtune export runs/issue -o issue-onnx --to onnx-int8"),
        (
            "To the Hub, as a private repository",
            "snugtune export runs/issue --to hub --repo-id ann/issue --private",
        ),
        (
            "A web page that needs no server",
            "snugtune export runs/issue -o page --to static --example 'Card stolen'",
        ),
    ),
    "app": (
        ("Try texts, predict tables, review, in a browser", "snugtune app runs/issue"),
        (
            "With a queue to review, and rules beside the text",
            "snugtune app runs/issue --queue new.xlsx --guidelines rules.md",
        ),
        (
            "For colleagues, who need a password",
            "snugtune app runs/issue --host 0.0.0.0 --password-file password.txt",
        ),
    ),
    "compare": (
        ("Is the second run really better?", "snugtune compare runs/a runs/b"),
        ("Three of them, for a program", "snugtune compare runs/a runs/b runs/c --json"),
    ),
    "watch": (
        ("Follow a run that trains in another window", "snugtune watch runs/issue"),
        ("Its state now, for a program", "snugtune watch runs/issue --json"),
    ),
    "report": (
        ("Make report.html again", "snugtune report runs/issue"),
        ("To send: elsewhere, without any text", "snugtune report runs/issue --no-texts -o issue.html"),
    ),
}


def epilog(command: str) -> str:
    """The examples of ``command`` in rich's markup, for the end of its help."""
    lines = ["[bold]Examples[/]"]
    for what, example in EXAMPLES[command]:
        lines.append(f"[dim]  {escape(what)}:[/]")
        lines += [f"[cyan]    {escape(line)}[/]" for line in example.split("\n")]
    return "\n".join(lines)
