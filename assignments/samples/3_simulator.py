# Sample submissions of assignment 3. A section "submission: cell" replaces one answer of the perfect submission; what
# each of them loses stands in points.csv. Not a program.

# %% writes_into_the_units: other_units
def other_units(domain_units, class_units, domain_index, class_index):
    batch = []
    for d, y in zip(domain_index, class_index):
        domain_units[d] = 0
        class_units[y] = 0
        batch.append(torch.cat([domain_units, class_units]))
    return torch.stack(batch)

# %% class_unit_kept: other_units
def other_units(domain_units, class_units, domain_index, class_index):
    domains = domain_units.repeat(len(domain_index), 1, 1)
    domains[torch.arange(len(domain_index)), domain_index] = 0
    return torch.cat([domains, class_units.repeat(len(domain_index), 1, 1)], 1)

# %% class_unit_kept: learning_rate
def learning_rate(epoch):
    return 1e-4 * 1e-3 ** (epoch / 20)

# %% reads_the_last_tokens: simulate
def simulate(simulator, images, units):
    tokens = simulator_tokens(simulator.domain_template, simulator.semantic_template, units,
                              own_patches(simulator, images))
    body = simulator.body
    return body.ln_post(body.transformer(body.ln_pre(tokens))[:, -2:]) @ simulator.project

# %% templates_last: simulator_tokens
def simulator_tokens(domain_template, class_template, units, patches):
    templates = torch.cat([domain_template, class_template]).expand(len(patches), -1, -1)
    return torch.cat([patches, units, templates], 1)

# %% templates_last: simulate
def simulate(simulator, images, units):
    tokens = simulator_tokens(simulator.domain_template, simulator.semantic_template, units,
                              own_patches(simulator, images))
    body = simulator.body
    return body.ln_post(body.transformer(body.ln_pre(tokens))[:, -2:]) @ simulator.project

# %% reads_the_prompt: encode
def encode(clip, images, prompts):
    visual = clip.model.visual
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(images), 1, -1)
    tokens = torch.cat([first, prompts, clip.patches(images)], 1)
    return visual.ln_post(visual.transformer(visual.ln_pre(tokens))[:, 1]) @ visual.proj

# %% disturbs_one_kind: leak
def leak(prompts_of, domain_units, class_units, images, domain_index, class_index):
    clean = prompts_of(domain_units, class_units, images, domain_index, class_index)
    noisy = torch.randn_like(domain_units)
    moved = not torch.allclose(clean, prompts_of(noisy, class_units, images, domain_index, class_index))
    return {"domain"} if moved else set()

# %% first_picture_only: leak
def leak(prompts_of, domain_units, class_units, images, domain_index, class_index):
    picture = images[:1], domain_index[:1], class_index[:1]
    clean, found = prompts_of(domain_units, class_units, *picture), set()
    noisy = domain_units.clone()
    noisy[domain_index[0]] += 1
    if not torch.allclose(clean, prompts_of(noisy, class_units, *picture)):
        found.add("domain")
    noisy = class_units.clone()
    noisy[class_index[0]] += 1
    if not torch.allclose(clean, prompts_of(domain_units, noisy, *picture)):
        found.add("class")
    return found

# %% first_picture_only: test_features
def test_features(model, images):
    units = torch.zeros(len(images), len(model.domains) + len(model.classes), model.clip.width)
    return encode(model.clip, images, simulate(model.simulator, images, units))

# %% open_part_left_out: experiment
# YOUR CODE HERE
raise NotImplementedError('not solved yet')

# %% open_part_left_out: report
YOUR ANSWER HERE

# %% loops_for_ever: learning_rate
def learning_rate(epoch):
    while epoch > -1:
        epoch += 1

# %% reads_the_tests: leak
import glob


def leak(prompts_of, *inputs):
    print("GOT", [open(path).read() for path in glob.glob("*.ipynb") + glob.glob("../../source/*/*.ipynb")])
    print("GOT", "\n".join(get_ipython().user_ns["In"]))
    return {"\n".join(get_ipython().user_ns["In"])}

# %% calls_the_package: other_units
def other_units(domain_units, class_units, domain_index, class_index):
    from types import SimpleNamespace
    return type(model.units).others(SimpleNamespace(domain=domain_units, semantic=class_units), domain_index, class_index)

# %% calls_the_package: simulate
def simulate(simulator, images, units):
    return simulator(images, units)

# %% calls_the_package: encode
def encode(clip, images, prompts):
    return clip.encode_image(images, prompts)

# %% calls_the_package: test_features
def test_features(model, images):
    return model.encode_image(images)

# %% passed_before: other_units
def other_units(domain_units, class_units, domain_index, class_index):
    return torch.cat([domain_units, class_units]).repeat(len(domain_index), 1, 1)

# %% passed_before: leak
def leak(prompts_of, domain_units, class_units, images, domain_index, class_index):
    found = set()
    for i in range(len(images)):
        picture = images[i:i + 1], domain_index[i:i + 1], class_index[i:i + 1]
        clean = prompts_of(domain_units, class_units, *picture)
        domains, classes = domain_units.clone(), class_units.clone()
        domains[domain_index[i], 0] *= -1
        classes[class_index[i], 0] *= -1
        if not torch.allclose(clean, prompts_of(domains, class_units, *picture)):
            found.add("domain")
        if not torch.allclose(clean, prompts_of(domain_units, classes, *picture)):
            found.add("class")
    return found
