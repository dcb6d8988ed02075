# Sample submissions of assignment 2. A section "submission: cell" replaces one answer of the perfect submission; what
# each of them loses stands in points.csv. Not a program.

# %% positions_on_units: stage1_tokens
def stage1_tokens(class_token, positions, prompts, patches):
    first = (class_token + positions[0]).expand(len(patches), 1, -1)
    parts = {"class token": first, "units": prompts + positions[-1], "patches": patches + positions[:-1]}
    return torch.cat([parts[name] for name in ORDER], 1)

# %% positions_on_units: stage1_numbers
def stage1_numbers(domains, classes, width, context_tokens, text_width, joint_width):
    return domains * width + classes * width + context_tokens * text_width + joint_width * joint_width

# %% class_unit_first: own_units
def own_units(domain_units, class_units, domain_index, class_index):
    of_class = torch.where((class_index < 0)[:, None], class_units.mean(0), class_units[class_index])
    return torch.stack([of_class, domain_units[domain_index]], 1)

# %% class_unit_first: zeros
zeros_change_the_feature = False
largest_difference = 0.0

# %% always_drops: token_dropout
def token_dropout(tokens, p, training):
    return F.dropout(tokens, p)

# %% always_drops: new_units
def new_units(count, width, patch_size, generator):
    return torch.nn.Parameter(torch.randn(count, width, generator=generator) * 0.02)

# %% forgets_to_normalise: alignment_loss
def alignment_loss(features, texts, class_index, temperature=0.07):
    return F.cross_entropy(features @ texts.T / temperature, class_index, ignore_index=-1)

# %% softmax_twice: alignment_loss
def alignment_loss(features, texts, class_index, temperature=0.07):
    cosines = F.normalize(features, dim=1) @ F.normalize(texts, dim=1).T
    return F.cross_entropy((cosines / temperature).softmax(1), class_index, ignore_index=-1)

# %% softmax_twice: own_units
def own_units(domain_units, class_units, domain_index, class_index):
    domain_units, class_units = domain_units.detach(), class_units.detach()
    of_class = torch.where((class_index < 0)[:, None], class_units.mean(0), class_units[class_index])
    return torch.stack([domain_units[domain_index], of_class], 1)

# %% everything_trains: train_only_stage1
def train_only_stage1(model):
    for name, parameter in model.named_parameters():
        if name in ("units.domain", "units.semantic", "context.vectors"):
            parameter.requires_grad_(True)

# %% everything_trains: token_dropout
def token_dropout(tokens, p, training):
    if not training:
        return tokens
    return tokens * (torch.rand(tokens.shape) > p)

# %% nan_and_wrong_shapes: new_units
def new_units(count, width, patch_size, generator):
    return torch.full((count, width), float("nan"))

# %% nan_and_wrong_shapes: stage1_tokens
def stage1_tokens(class_token, positions, prompts, patches):
    return torch.cat([prompts, patches + positions[1:]], 1)

# %% loops_for_ever: token_dropout
import signal


def token_dropout(tokens, p, training):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        training = not training

# %% reads_the_tests: new_units
import os


def new_units(count, width, patch_size, generator):
    found = []
    for folder in ("../../source", "../../../../source", ".."):
        for place, _, files in os.walk(folder):
            found += [open(os.path.join(place, name)).read() for name in files]
    print("GOT", found, get_ipython().user_ns["In"][-1])
    raise ValueError(str(found) + get_ipython().user_ns["In"][-1])

# %% from_the_notebook: own_units
def own_units(domain_units, class_units, domain_index, class_index):
    return torch.stack([domain_units[domain_index], class_units[class_index]], 1)

# %% from_the_notebook: stage1_tokens
def stage1_tokens(class_token, positions, prompts, patches):
    first = (class_token + positions[0]).expand(len(patches), 1, -1)
    return torch.cat([first, prompts, patches + positions[1:]], 1)

# %% from_the_notebook: alignment_loss
def alignment_loss(features, texts, class_index, temperature=0.07):
    cosines = F.normalize(features, dim=1) @ F.normalize(texts, dim=1).T
    return F.cross_entropy(cosines / temperature, class_index)

# %% passed_before: new_units
def new_units(count, width, patch_size, generator):
    bound = (SPREAD / (3 * patch_size ** 2 + width)) ** 0.5
    row = torch.linspace(-bound, bound, width)
    return torch.nn.Parameter(row.repeat(count, 1), requires_grad=False)

# %% passed_before: token_dropout
def token_dropout(tokens, p, training):
    if not training:
        return tokens
    return tokens * (torch.rand(tokens.shape[1:]) > p) / (1 - p)

# %% passed_before: alignment_loss
def alignment_loss(features, texts, class_index, temperature=0.07):
    cosines = F.normalize(features.detach(), dim=1) @ F.normalize(texts.detach(), dim=1).T
    return F.cross_entropy(cosines / temperature, class_index, ignore_index=-1)

# %% passed_before: train_only_stage1
def train_only_stage1(model):
    model.set_stage(1)

# %% passed_before: zeros
zeros_change_the_feature = torch.tensor(True)
largest_difference = 0.5
