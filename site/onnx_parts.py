"""The parts of mini-CLIP and ProS that the page runs, as ONNX files with half-precision weights.

Every method is made of the same three kinds of parts, so that the page fetches what they share once:

    stem        image [1, 3, 56, 56]                         -> patches [1, N, W]
    simulator   patches                                      -> prompts [1, P, W], one file for each ProS
    blocks      first [1, 1 + P, W] (class token ; prompts), patches -> what the projection reads [1, W], and how much
                the class token attends to every patch [1, N]
    words       tokens [1, L], end [1] (its place)           -> what the text projection reads [1, Wt]

`PartsInPython` puts them together as worker.js does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from prosutils.backbone import PromptableCLIP, run_blocks
from prosutils.pros import ProS
from prosutils.tuned import TunedCLIP

SMALL = 64  # values; smaller tensors stay in single precision


class Stem(nn.Module):
    """Pixels to patch embeddings: the convolutions that all methods share, frozen."""

    def __init__(self, clip: PromptableCLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.clip.patches(image)


class Blocks(nn.Module):
    """The transformer that all methods share, frozen; read at the class token, before the projection.

    The second output says where the last block looks: the class token's attention to the patches, mean of its heads.
    """

    def __init__(self, clip: PromptableCLIP) -> None:
        super().__init__()
        self.visual = clip.model.visual

    def forward(self, first: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *blocks, last = self.visual.transformer.resblocks
        tokens = self.visual.ln_pre(torch.cat([first, patches], 1))  # [1, 1+P+N, W]
        for block in blocks:
            tokens = block(tokens)
        read = run_blocks([last], tokens, torch.tensor([0]))[:, 0]
        attention = class_attention(last.attn, last.ln_1(tokens))[:, -patches.shape[1] :]
        return self.visual.ln_post(read), attention  # [1, W], [1, N]


def class_attention(attn: nn.MultiheadAttention, context: torch.Tensor) -> torch.Tensor:
    """Weights of the first of the tokens [B, T, W], mean of the heads: [B, T]."""
    query, key, _ = nn.functional.linear(context, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    query, key = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (query[:, :1], key))  # [B, H, T, d]
    return (query @ key.transpose(2, 3) * key.shape[-1] ** -0.5).softmax(-1).mean(1)[:, 0]


class Words(nn.Module):
    """The text tower that all methods share, frozen; read at the end of the text, before the projection."""

    def __init__(self, clip: PromptableCLIP) -> None:
        super().__init__()
        self.model = clip.model

    def forward(self, tokens: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        model = self.model
        embedded = model.token_embedding(tokens) + model.positional_embedding  # [1, L, Wt]
        return model.ln_final(run_blocks(model.transformer.resblocks, embedded, end, model.attn_mask)[:, 0])


class Simulator(nn.Module):
    """ProS's simulator with all of its prompt units: patches to prompts, as at test time."""

    units: torch.Tensor

    def __init__(self, model: ProS) -> None:
        super().__init__()
        self.simulator = model.simulator
        self.register_buffer("units", model.units.all(1).detach().clone())  # [1, M+S, W]

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.simulator(patches, self.units, patches)  # reads CLIP's patches, never the pixels


@torch.no_grad()
def export(
    part: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    path: Path,
    outputs: Sequence[str] = ("output",),
    free: str | None = None,
) -> None:
    """Write a part as ONNX, its weights in half precision. `free`: the input whose number of tokens (axis 1) is free."""
    shapes = {name: {1: torch.export.Dim("tokens", min=1, max=64)} if name == free else None for name in inputs}
    program = torch.onnx.export(
        part.eval(),
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=shapes if free else None,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    onnx.save(halved(program.model_proto), path)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its large float32 tensors stored as float16, each cast back before its first use.

    It computes in single precision; only the file is half as large.
    """
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and values.size > SMALL:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:], graph.value_info[:], model.metadata_props[:]
    for node in nodes:
        del node.metadata_props[:]  # where in the source each came from
    graph.node.extend(casts + nodes)
    onnx.checker.check_model(model)
    return model


def class_token(model: TunedCLIP) -> torch.Tensor:
    """[W]: a method's class token at its place in the sequence."""
    visual = model.clip.model.visual
    return (visual.class_embedding + visual.positional_embedding[0]).detach()


class PartsInPython:
    """The exported parts run by onnxruntime, put together as the page puts them together.

    folder: where the ONNX files are; arrays: {name: float16 array}, of each method its class token and projections.
    """

    def __init__(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.sessions = {
            path.stem: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in folder.glob("*.onnx")
        }
        self.arrays = {name: values.astype(np.float32) for name, values in arrays.items()}

    def run(self, part: str, **inputs: np.ndarray) -> np.ndarray:
        return self.sessions[part].run(None, inputs)[0]

    def feature(self, image: np.ndarray, method: str, simulator: str | None) -> np.ndarray:
        """Normalised pixels [3, H, W] -> feature [D] of length 1. simulator: None where no prompts are used."""
        patches = self.run("stem", image=image[None])
        first = self.arrays[f"class_token/{method}"][None, None]  # [1, 1, W]
        if simulator:
            first = np.concatenate([first, self.run(simulator, patches=patches)], 1)
        return self.projected(self.run("blocks", first=first, patches=patches)[0], f"projection/{method}")

    def word_feature(self, tokens: np.ndarray, method: str) -> np.ndarray:
        """Tokens [L] -> feature [D] of length 1; the text ends at the largest."""
        read = self.run("words", tokens=tokens[None], end=tokens.argmax(keepdims=True))[0]
        return self.projected(read, f"text_projection/{method}")

    def projected(self, read: np.ndarray, projection: str) -> np.ndarray:
        feature = read @ self.arrays[projection]
        return feature / np.linalg.norm(feature)
