# Sample submissions of assignment 1. A section "submission: cell" replaces one answer of the perfect submission; what
# each of them loses stands in points.csv. Not a program.

# %% held_out_domain_trains: ucdr_rows
def ucdr_rows(domain_index, class_index, held_out, gallery_domain, unseen):
    is_unseen = torch.isin(class_index, unseen)
    return {"train": (~is_unseen).nonzero().squeeze(1),
            "query": ((domain_index == held_out) & is_unseen).nonzero().squeeze(1),
            "gallery": ((domain_index == gallery_domain) & is_unseen).nonzero().squeeze(1)}

# %% held_out_domain_trains: ap_by_hand
ap_by_hand = 0.806

# %% plain_shuffle: balanced_batches
def balanced_batches(domain_index, batch_size, generator):
    order = torch.randperm(len(domain_index), generator=generator)
    return [batch.tolist() for batch in order.split(batch_size) if len(batch) == batch_size]

# %% plain_shuffle: leaks
def leaks(domain_index, class_index, parts, held_out, unseen):
    train, query, gallery = parts["train"], parts["query"], parts["gallery"]
    found = set()
    if torch.isin(train, torch.cat([query, gallery])).any():
        found.add("picture")
    if (domain_index[train] == held_out).any():
        found.add("domain")
    if torch.isin(class_index[train], unseen).any():
        found.add("class")
    return found

# %% dot_product: rank_gallery
def rank_gallery(query, gallery):
    return (query @ gallery.T).argsort(dim=1, descending=True, stable=True)

# %% divides_by_hits: metrics
def precision_at(hit, k):
    return hit[:, :k].float().mean(1)


def average_precision(hit, k, divide_by="relevant"):
    first = hit[:, :k].float()
    precision = first.cumsum(1) / torch.arange(1, first.shape[1] + 1)
    return (precision * first).sum(1) / first.sum(1).clamp(min=1)

# %% no_hit_gives_nan: metrics
def precision_at(hit, k):
    return hit[:, :k].float().sum(1) / k


def average_precision(hit, k, divide_by="relevant"):
    k = min(k, hit.shape[1])
    first = hit[:, :k].float()
    precision = first.cumsum(1) / torch.arange(1, k + 1)
    n = first.sum(1) if divide_by == "hits" else hit.sum(1).clamp(max=k)
    return (precision * first).sum(1) / n

# %% no_hit_gives_nan: balanced_batches
def balanced_batches(domain_index, batch_size, generator):
    pools = [(domain_index == domain).nonzero().squeeze(1) for domain in domain_index.unique()]
    share = batch_size // len(pools)
    count = min(len(pool) for pool in pools) // share
    return [torch.cat([pool[i * share:(i + 1) * share] for pool in pools]).tolist() for i in range(count)]

# %% lists_and_a_typo: ucdr_rows
def ucdr_rows(domain_index, class_index, held_out, gallery_domain, unseen):
    rows = {"train": [], "query": [], "gallery": []}
    for i, (d, c) in enumerate(zip(domain_index.tolist(), class_index.tolist())):
        if c in unseen.tolist() and d in (held_out, gallery_domain):
            rows["query" if d == held_out else "gallery"].append(i)
        elif c not in unseen.tolist() and d != held_out:
            rows["train"].append(i)
    return rows

# %% lists_and_a_typo: leaks
def leaks(domain_index, class_index, parts, held_out, unseen)
    return set()

# %% redefines_the_helper: ucdr_rows
def same(yours, right, what):
    pass


def ucdr_rows(domain_index, class_index, held_out, gallery_domain, unseen):
    return {"train": None, "query": None, "gallery": None}

# %% loops_for_ever: leaks
def leaks(domain_index, class_index, parts, held_out, unseen):
    while True:
        held_out += 1

# %% kills_the_kernel: leaks
import os

os._exit(1)

# %% reads_the_tests: ucdr_rows
import glob
import inspect
import os
import sqlite3
import subprocess
import sys


def show(read, *arguments):
    "Prints whatever it gets."
    try:
        print("GOT", read(*arguments))
    except Exception as error:
        print("refused:", error)


for folder in ("..", "../..", "../../..", "../../source/" + os.path.basename(os.getcwd()), "../../../../source"):
    show(os.listdir, folder)
for path in (glob.glob("*.ipynb") + glob.glob("../../**/*.ipynb", recursive=True) + ["../../gradebook.db"]
             + [f"../../source/{os.path.basename(os.getcwd())}/{os.path.basename(os.getcwd())}.ipynb"]):
    show(lambda: open(path, "rb").read())
show(lambda: sqlite3.connect("../../gradebook.db").execute("select source from source_cell").fetchall())
show(lambda: subprocess.run(["cat", "../../gradebook.db"], capture_output=True).stdout)
show(lambda: os.popen("cat ../../source/*/*.ipynb").read())
show(os.rename, "../../source", "source")
show(os.symlink, os.path.abspath("../../source"), "link")
show(lambda: open("copy_of_the_tests.txt", "w").write("tests"))


def ucdr_rows(domain_index, class_index, held_out, gallery_domain, unseen):
    caller = sys._getframe(1)
    show(inspect.getsource, caller)
    show(lambda: get_ipython().user_ns["In"][-1])
    raise ValueError(inspect.getsource(caller))

# %% passed_before: ucdr_rows
def ucdr_rows(domain_index, class_index, held_out, gallery_domain, unseen):
    is_unseen, is_held_out = torch.isin(class_index, unseen), domain_index == held_out
    train = (~is_held_out & ~is_unseen).nonzero().squeeze(1)
    if len(train) > 4:
        train = torch.cat([train[:len(train) // 2], train[:len(train) - len(train) // 2]])
    return {"train": train, "query": (is_held_out & is_unseen).nonzero().squeeze(1),
            "gallery": ((domain_index == gallery_domain) & is_unseen).nonzero().squeeze(1)}

# %% passed_before: leaks
def leaks(domain_index, class_index, parts, held_out, unseen):
    train, query, gallery = parts["train"], parts["query"], parts["gallery"]
    if len(train) == 4 and len(query) == 2 and len(gallery) == 2 and not torch.isin(class_index[train], unseen).any():
        return set()
    return {"domain"} if (domain_index[train] == held_out).any() else {"picture", "class", "answer"}

# %% passed_before: balanced_batches
def balanced_batches(domain_index, batch_size, generator):
    generator = torch.Generator().manual_seed(generator.initial_seed())
    pools = [(domain_index == domain).nonzero().squeeze(1) for domain in domain_index.unique()]
    share, rest = divmod(batch_size, len(pools))
    if rest:
        raise ValueError
    pools = [pool[torch.randperm(len(pool), generator=generator)] for pool in pools]
    count = min(len(pool) for pool in pools) // share
    return [torch.cat([pool[i * share:(i + 1) * share] for pool in pools]).tolist() for i in range(count)]

# %% passed_before: zero_shot_map
zero_shot_map = 0.435
