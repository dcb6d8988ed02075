# Sample submissions of assignment 2. A section "submission: cell" replaces one answer of the perfect submission; what
# each of them loses stands in points.csv. Not a program.

# %% positions_on_units: stage1_tokens
def stage1_tokens(class_token, positions, prompts, patches):
    first = class_token.expand(len(patches), 1, -1)
    tokens = torch.cat([first, prompts, patches], 1)
    more = torch.cat([positions, positions[-1:], positions[-1:]])
    return tokens + more

# %% positions_on_units: stage1_numbers
def stage1_numbers(domains, classes, width, context_tokens, text_width, joint_width):
    return domains * width + classes * width + context_tokens * text_width + joint_width * joint_width

# %% class_unit_first: own_units
def own_units(domain_units, class_units, domain_index, class_index):
    return torch.stack([class_units[class_index], domain_units[domain_index]], 1)

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
    return F.cross_entropy(features @ texts.T / temperature, class_index)

# %% softmax_twice: alignment_loss
def alignment_loss(features, texts, class_index, temperature=0.07):
    cosines = F.normalize(features, dim=1) @ F.normalize(texts, dim=1).T
    return F.cross_entropy((cosines / temperature).softmax(1), class_index)

# %% softmax_twice: own_units
def own_units(domain_units, class_units, domain_index, class_index):
    return torch.stack([domain_units.detach()[domain_index], class_units.detach()[class_index]], 1)

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
