"""Experts against a loop over tokens, against Mixtral's, and as part of a model that learns.

Shapes: B batch, T time, C model width, F = 4 C expert width, N tokens, E experts, K experts a token visits.
"""

import copy
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gpt_model import GPT, GPTConfig
from gpt_model.feed_forward import FeedForward
from gpt_model.mixture_of_experts import MixtureOfExperts, Routing, imbalance
from utils.files import InputError

C = 12


def config_of(E: int, K: int, **changes: object) -> GPTConfig:
    return GPTConfig.preset("tiny", n_experts=E, n_active_experts=K, **changes)


def layer_of(E: int, K: int, **changes: object) -> MixtureOfExperts:
    """With a router that has opinions, and biases away from zero."""
    torch.manual_seed(E)
    layer = MixtureOfExperts(config_of(E, K, d_model=C, **changes))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.4)
    return layer


def by_tokens(layer: MixtureOfExperts, x_BTC: Tensor) -> Tensor:
    """One token after the other, one expert after the other, from the definition."""
    answers = []
    for x_C in x_BTC.flatten(0, 1):
        scores_E = layer.router.weight @ x_C
        chosen = sorted(range(len(scores_E)), key=lambda e: -scores_E[e].item())[: layer.n_active]
        among_K = scores_E[chosen].softmax(0) if layer.n_active > 1 else scores_E.softmax(0)[chosen]
        answers.append(sum(w * layer.experts[e](x_C) for w, e in zip(among_K, chosen, strict=True)))
    return torch.stack(answers).view_as(x_BTC)


class TestLayer:
    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_equals_a_loop_over_tokens(self, data: st.DataObject) -> None:
        E = data.draw(st.integers(1, 6), "E")
        K = data.draw(st.integers(1, E), "K")
        B, T = data.draw(st.integers(1, 3), "B"), data.draw(st.integers(1, 7), "T")
        layer = layer_of(E, K, bias=data.draw(st.booleans(), "bias")).double()
        x_BTC = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
        inputs = [x_BTC, *layer.parameters()]
        results = []
        for y_BTC in (layer(x_BTC)[0], by_tokens(layer, x_BTC)):
            # an expert that nobody visits has no gradient in the loop, and zeros in the layer
            gradients = torch.autograd.grad(y_BTC.square().sum(), inputs, allow_unused=True)
            pairs = zip(gradients, inputs, strict=True)
            results.append([y_BTC, *(torch.zeros_like(x) if g is None else g for g, x in pairs)])
        torch.testing.assert_close(*results)

    def test_equals_mixtral(self) -> None:
        """Whose experts multiply GELU(gate x) with (up x): a channel of x that is always one makes that factor one."""
        mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
        E, K = 5, 2
        layer = layer_of(E, K, bias=False)
        theirs = mixtral.MixtralSparseMoeBlock(
            mixtral.MixtralConfig(
                hidden_size=C, intermediate_size=4 * C, num_local_experts=E, num_experts_per_tok=K,
                hidden_act="gelu_new", experts_implementation="eager",
            )
        )  # fmt: skip
        up_FC = torch.zeros(4 * C, C)
        up_FC[:, -1] = 1
        gates = [torch.cat([expert.expand.weight, up_FC]) for expert in layer.experts]
        theirs.load_state_dict(
            {
                "gate.weight": layer.router.weight,
                "experts.gate_up_proj": torch.stack(gates),
                "experts.down_proj": torch.stack([expert.out.weight for expert in layer.experts]),
            }
        )
        x_BTC = torch.randn(2, 9, C)
        x_BTC[..., -1] = 1
        torch.testing.assert_close(layer(x_BTC)[0], theirs(x_BTC))
        _, weights, experts = theirs.gate(x_BTC)
        routing = layer.route(x_BTC.flatten(0, 1))
        assert torch.equal(routing.experts, experts)
        torch.testing.assert_close(routing.weights, weights)

    def test_one_expert_is_an_ordinary_feed_forward(self) -> None:
        layer = layer_of(1, 1)
        plain = FeedForward(config_of(1, 1, d_model=C))
        plain.load_state_dict(layer.experts[0].state_dict())
        x_BTC = torch.randn(2, 9, C)
        y_BTC, uneven = layer(x_BTC)
        torch.testing.assert_close(y_BTC, plain(x_BTC))
        assert uneven == 1

    @pytest.mark.parametrize("K", [1, 2, 3])
    def test_the_router_learns_from_the_answers(self, K: int) -> None:
        layer = layer_of(4, K)
        layer(torch.randn(2, 9, C))[0].square().sum().backward()
        assert layer.router.weight.grad.norm() > 0.1

    @pytest.mark.parametrize(("E", "K"), [(4, 1), (4, 2), (16, 2)])
    def test_experts_that_are_not_visited_cost_nothing(self, E: int, K: int) -> None:
        N = 30
        layer = layer_of(E, K)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(torch.randn(1, N, C))
        visit = 2 * 2 * C * 4 * C  # two matrices, a product and a sum for each of their numbers
        assert counter.get_total_flops() == N * (K * visit + 2 * C * E)

    @pytest.mark.parametrize(("E", "K"), [(1, 1), (4, 1), (5, 2), (3, 3)])
    def test_a_graph_of_it_computes_the_same(self, E: int, K: int) -> None:
        """There all tokens go to all experts, and most of the answers are multiplied by zero."""
        layer = layer_of(E, K)
        x_BTC = torch.randn(2, 9, C)
        graph = torch.export.export(layer, (x_BTC,)).module()
        torch.testing.assert_close(graph(x_BTC), layer(x_BTC))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_errs_little(self, dtype: torch.dtype) -> None:
        layer = layer_of(4, 2).to(dtype)
        x_BTC = torch.randn(2, 9, C, dtype=dtype)
        y_BTC, uneven = layer(x_BTC)
        assert (y_BTC.dtype, uneven.dtype) == (dtype, torch.float32)
        exact = copy.deepcopy(layer).double()(x_BTC.double())[0]
        assert (y_BTC - exact).norm() < 0.02 * exact.norm()


class TestImbalance:
    @pytest.mark.parametrize("K", [1, 2])
    def test_is_one_where_use_is_even_and_largest_where_it_is_always_the_same(self, K: int) -> None:
        E, N = 6, 12
        turns = (torch.arange(N)[:, None] + torch.arange(K)) % E
        even = Routing(turns, torch.full((N, K), 1 / K), torch.full((N, E), 1 / E))
        assert imbalance(even).item() == pytest.approx(1)
        sure = torch.zeros(N, E)
        sure[:, :K] = 1 / K
        always = Routing(torch.arange(K).expand(N, K), torch.full((N, K), 1 / K), sure)
        assert imbalance(always).item() == pytest.approx(E / K)

    def test_is_mixtrals_but_for_its_scale(self) -> None:
        """Theirs adds up to K where use is even."""
        mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
        layer = layer_of(5, 3)
        x_NC = torch.randn(40, C)
        expected = mixtral.load_balancing_loss_func((layer.router(x_NC),), num_experts=5, top_k=3)
        torch.testing.assert_close(imbalance(layer.route(x_NC)), expected / 3)

    def test_its_gradient_evens_out(self) -> None:
        """A router that prefers an expert, moved against the gradient alone, comes to use all of them."""
        layer = layer_of(4, 2)
        x_NC = torch.randn(256, C) + 0.5
        before = visits(layer.route(x_NC).experts, 4)
        optimizer = torch.optim.Adam([layer.router.weight], lr=0.02)
        for _ in range(60):
            imbalance(layer.route(x_NC)).backward()
            optimizer.step()
            optimizer.zero_grad()
        after = visits(layer.route(x_NC).experts, 4)
        assert before.min() < 0.15
        assert after.min() > 0.22


def visits(experts_NK: Tensor, E: int) -> Tensor:
    """The share of each expert."""
    return experts_NK.flatten().bincount(minlength=E) / experts_NK.numel()


class TestModel:
    def test_only_the_training_loss_has_the_penalty(self) -> None:
        torch.manual_seed(0)
        model = GPT(config_of(4, 2, balance_loss=0.5))
        ids = torch.randint(512, (2, 17))
        uneven = []
        for block in model.blocks:
            block.register_forward_hook(lambda _block, _inputs, output: uneven.append(output[1]))
        logits, loss = model.train()(ids[:, :-1], ids[:, 1:])
        pure = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        assert len(uneven) == 2
        assert min(uneven) > 1
        torch.testing.assert_close(loss, pure + 0.5 * sum(uneven))
        torch.testing.assert_close(model.eval()(ids[:, :-1], ids[:, 1:])[1], pure)

    def test_counts_the_parameters_a_token_meets(self) -> None:
        model = GPT(config_of(8, 3))
        dense = GPT(GPTConfig.preset("tiny"))
        expert = sum(parameter.numel() for parameter in dense.blocks[0].feed_forward.parameters())
        router = 8 * 64
        assert model.n_parameters == dense.n_parameters + 2 * (7 * expert + router)
        assert model.n_active_parameters == dense.n_parameters + 2 * (2 * expert + router)
        assert dense.n_active_parameters == dense.n_parameters

    def test_nothing_stays_behind_after_a_step(self) -> None:
        """A model that kept its last penalty would keep a graph too, and could not be copied."""
        model = GPT(config_of(4, 2))
        ids = torch.randint(512, (2, 16))
        model(ids, ids)[1].backward()
        assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()

    def test_is_the_same_each_time(self) -> None:
        """Trainers ask torch for what is repeatable, and it refuses what is not."""
        ids = torch.randint(512, (4, 64))
        gradients = []
        torch.use_deterministic_algorithms(True)
        try:
            for _ in range(2):
                torch.manual_seed(0)
                model = GPT(config_of(4, 2))
                model(ids, ids)[1].backward()
                gradients.append([parameter.grad for parameter in model.parameters()])
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))

    def test_runs_under_autocast(self) -> None:
        torch.manual_seed(0)
        model = GPT(config_of(4, 2))
        ids = torch.randint(512, (2, 32))
        with torch.autocast("cpu", torch.bfloat16):
            _, loss = model(ids, ids)
        loss.backward()
        assert loss.item() == pytest.approx(model(ids, ids)[1].item(), rel=0.01)
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    def test_a_run_is_saved_and_loaded(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = GPT(config_of(4, 2, balance_loss=0.03)).eval()
        (tmp_path / "config.json").write_text(json.dumps({"model": asdict(model.config), "training": {}}))
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        loaded = GPT.from_run(tmp_path)
        assert loaded.config == model.config
        ids = torch.randint(512, (2, 16))
        torch.testing.assert_close(loaded(ids)[0], model(ids)[0])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"n_experts": -1}, "n_experts must be at least 0 and .*, got -1"),
            ({"n_experts": 2, "n_active_experts": 3}, "n_active_experts must be from 1 to 2, got 3"),
            ({"n_experts": 2, "n_active_experts": 0}, "n_active_experts must be at least 1 and .*, got 0"),
            ({"balance_loss": -0.1}, "balance_loss must be at least 0 and .*, got -0.1"),
        ],
    )
    def test_impossible_numbers_are_refused(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            GPTConfig.preset("tiny", **changes)
        GPTConfig.preset("tiny", n_active_experts=3)  # without experts it does not matter that there are fewer


class TestTraining:
    """A plain loop, begun with a router that sends every token to the same two of four experts."""

    @staticmethod
    def train(balance_loss: float) -> tuple[float, Tensor, Tensor]:
        """The loss on new text, and the shares of the experts before training and after."""
        torch.manual_seed(0)
        model = GPT(
            GPTConfig(
                vocab_size=32, context_length=16, d_model=32, n_layers=1, n_heads=2, n_experts=4, n_active_experts=2,
                balance_loss=balance_loss,
            )
        )  # fmt: skip
        block = model.blocks[0]
        with torch.no_grad():
            block.feed_forward_norm.bias.fill_(0.5)
            block.feed_forward.router.weight[:2] += 0.3
        _, before = look(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(200):
            ids = cycles(16)
            model(ids[:, :-1], ids[:, 1:])[1].backward()
            optimizer.step()
            optimizer.zero_grad()
        return *look(model), before

    def test_the_penalty_keeps_experts_from_being_forgotten(self) -> None:
        with_it, after, before = self.train(GPTConfig().balance_loss)
        assert before.tolist() == [0.5, 0.5, 0, 0]
        assert after.min() > 0.15
        without, forgetful, _ = self.train(0)
        assert forgetful[2:].max() < 0.01
        assert max(with_it, without) < math.log(8) - 0.2  # who knows only the alphabet has eight letters to choose from


@torch.no_grad()
def look(model: GPT) -> tuple[float, Tensor]:
    layer, routed = model.blocks[0].feed_forward, []
    hook = layer.register_forward_pre_hook(lambda _layer, inputs: routed.append(layer.route(inputs[0].flatten(0, 1))))
    ids = cycles(128)
    _, loss = model.eval()(ids[:, :-1], ids[:, 1:])
    hook.remove()
    model.train()
    return loss.item(), visits(routed[0].experts, 4)


def cycles(rows: int) -> Tensor:
    """Four alphabets of eight letters; each row walks through one of them in strides of its own."""
    alphabets, starts, strides = (
        torch.randint(4, (rows, 1)),
        torch.randint(8, (rows, 1)),
        torch.randint(1, 8, (rows, 1)),
    )
    return 8 * alphabets + (starts + strides * torch.arange(17)) % 8
