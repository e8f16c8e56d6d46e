# %% [markdown]
# A method of one's own beside LoRA, in Python: from the checkout, `python examples/compare.py`,
# or open it as a notebook (each `# %%` begins a cell).

# %%
from pathlib import Path

import loraexp
from loraexp.config import search

HERE = Path(__file__).parent
search.use([str(HERE / "conf")])  # what `--config-dir examples/conf` does
overrides = [f"task.data_dir={HERE}"]

# %% One run, and its record
done = loraexp.run("experiment=debug", "init=negative_gradient", "task=meals", *overrides)
print(done.record["metrics"])

# %% The table: every run that is missing, then the numbers
print(loraexp.sweep("meals_table", *overrides))
frame = loraexp.table("meals_table", *overrides)
print(frame[["row_label", "mean", "std", "n", "chosen"]])

# %% The figure that the table declares, as matplotlib has it
figure = loraexp.plot("meals_table", *overrides)
figure.savefig("meals.png")

# %% All records as one table; experiment=debug files its runs apart
print(loraexp.load_records("outputs/debug").groupby("init.name")["dev/accuracy"].mean())
