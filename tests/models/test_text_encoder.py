import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    RobertaConfig,
    RobertaModel,
)

from medfusion.errors import ConfigError
from medfusion.models.blocks.text_encoder import TextEncoder, _vocabulary, tokenizer
from medfusion.models.contract import frozen_sha256, trainable_state
from medfusion.models.options import TextOptions

T = 24
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fever", "cough", "no", "and", "##s"]

# invented for this test
NOTES = [
    "72-year-old man, 5 days of fever (38.7°C) and dry cough; SpO2 88% on room air.",
    "Pt denies chest pain. CXR: patchy bilateral ground-glass opacities, R>L, no effusion.",
    "WBC 11.2 x10^9/L, CRP 143 mg/L, D-dimer ≥ 2 µg/mL. Intubated on day 3 -> ICU!",
    "Hx: COPD, T2DM & hypertension. Zyxwvutsrq-resistant (?) organism; [MASK] suspected...",
]


def ids(*rows: list[int]) -> torch.Tensor:
    found = torch.zeros(len(rows), T, dtype=torch.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = torch.tensor(row)
    return found


@pytest.fixture
def bert_folder(tmp_path):
    torch.manual_seed(0)
    BertModel(BertConfig(**SHAPE)).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    return tmp_path


def test_vocabulary_has_no_repeats_and_starts_with_padding():
    pieces = _vocabulary()
    assert len(set(pieces)) == len(pieces)
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_clinical_notes_need_no_unknown_token():
    found = tokenizer(TextOptions(), 128)(NOTES)
    assert not (found == _vocabulary().index("[UNK]") + 1).any()
    assert (found == _vocabulary().index("[MASK]") + 1).sum() == 1


def test_notes_are_padded_cut_and_may_be_missing():
    found = tokenizer(TextOptions(), 6)([None, "fever", NOTES[0], "", "  \n"])
    assert found.shape == (5, 6)
    assert found.dtype == np.int64
    assert (found > 0).sum(axis=1).tolist() == [0, 3, 6, 0, 0]  # [CLS] fever [SEP]
    pieces = _vocabulary()
    assert [pieces[i - 1] for i in found[1, :3]] == ["[CLS]", "fever", "[SEP]"]


def test_no_note_at_all_gives_padding_only():
    assert not tokenizer(TextOptions(), 6)([None, None]).any()
    assert tokenizer(TextOptions(), 6)([]).shape == (0, 6)


def test_padding_changes_no_state():
    encoder = TextEncoder(TextOptions(), T)
    short, long = TextEncoder(TextOptions(), T), ids([3, 300, 400, 4])
    states = encoder(long)
    torch.testing.assert_close(short(long[:, :4])[0], states[0, :4])
    assert torch.isfinite(encoder(ids([]))).all()


def test_order_and_neighbours_reach_the_states():
    encoder = TextEncoder(TextOptions(), T)
    one, two, three = encoder(ids([300, 400, 500], [400, 300, 500], [300, 400, 600]))
    assert not torch.allclose(one[2], two[2])
    assert not torch.allclose(one[0], three[0])


def test_tiny_is_the_same_everywhere_and_frozen():
    torch.manual_seed(1)
    first = TextEncoder(TextOptions(), T)
    torch.manual_seed(2)
    second = TextEncoder(TextOptions(), T)
    assert frozen_sha256(first) == frozen_sha256(second)
    assert trainable_state(first) == {}
    assert not first.train()(ids([3, 4])).requires_grad


def test_the_digest_of_frozen_parts_sees_every_value():
    encoder = TextEncoder(TextOptions(), T)
    before = frozen_sha256(encoder)
    with torch.no_grad():
        encoder.encoder.embeddings.word_embeddings.weight[7, 3] += 1e-3
    assert frozen_sha256(encoder) != before


def test_unfrozen_it_is_trained():
    encoder = TextEncoder(TextOptions(freeze=False), T)
    assert encoder(ids([3, 4])).requires_grad
    assert len(trainable_state(encoder)) == len(list(encoder.parameters()))


def test_a_local_encoder_and_its_tokenizer_are_used(bert_folder):
    options = TextOptions(encoder=str(bert_folder))
    found = tokenizer(options, T)(["Fever and coughs", None])
    assert found[0, :6].tolist() == [3, 6, 9, 7, 10, 4]  # [CLS] fever and cough ##s [SEP], + 1
    encoder = TextEncoder(options, T).train()
    states = encoder(torch.from_numpy(found))
    reference = BertModel.from_pretrained(bert_folder).eval()
    expected = reference(torch.from_numpy(found[:1, :6] - 1)).last_hidden_state
    torch.testing.assert_close(states[:1, :6], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(torch.from_numpy(found)), states)  # no dropout in training


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("model", [BertModel, RobertaModel], ids=lambda model: model.__name__)
def test_trained_local_encoders_give_right_per_sample_gradients(tmp_path, model):
    torch.manual_seed(0)
    model({BertModel: BertConfig, RobertaModel: RobertaConfig}[model](**SHAPE)).save_pretrained(
        tmp_path
    )
    encoder = TextEncoder(TextOptions(encoder=str(tmp_path), freeze=False), T).double()
    notes = ids([3, 9, 8, 4], [3, 9, 4], [3, 12, 12, 12, 4])
    hooked = GradSampleModule(encoder, loss_reduction="sum")
    hooked(notes).pow(3).sum().backward()  # padding counts too: its embedding has a gradient
    found = {name: p.grad_sample.clone() for name, p in encoder.named_parameters()}
    hooked.to_standard_module()
    for row in range(3):
        encoder.zero_grad(set_to_none=True)
        encoder(notes[row : row + 1]).pow(3).sum().backward()
        for name, p in encoder.named_parameters():
            torch.testing.assert_close(found[name][row], p.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_roberta_counts_positions_as_it_was_trained(tmp_path):
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(**SHAPE)).save_pretrained(tmp_path)
    encoder = TextEncoder(TextOptions(encoder=str(tmp_path)), T)
    reference = RobertaModel.from_pretrained(tmp_path).eval()
    expected = reference(torch.tensor([[0, 9, 8, 2]])).last_hidden_state
    torch.testing.assert_close(encoder(ids([1, 10, 9, 3]))[:, :4], expected, atol=1e-5, rtol=1e-4)


def test_an_encoder_that_is_not_on_this_machine_is_refused(tmp_path):
    options = TextOptions(encoder=str(tmp_path / "absent"))
    for use in (TextEncoder, tokenizer):
        with pytest.raises(ConfigError, match=r"model\.text\.encoder = .*hf download"):
            use(options, T)


def test_an_encoder_that_is_too_short_is_refused(bert_folder):
    with pytest.raises(ConfigError, match=r"reads at most 32 tokens.*max_tokens = 40"):
        TextEncoder(TextOptions(encoder=str(bert_folder)), 40)


def test_an_encoder_that_cannot_be_called_like_bert_is_refused(tmp_path):
    DebertaV2Model(DebertaV2Config(**SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="DebertaV2Model cannot be called like BERT"):
        TextEncoder(TextOptions(encoder=str(tmp_path)), T)


def test_pickled_weights_are_refused(bert_folder):
    (bert_folder / "model.safetensors").unlink()
    torch.save({}, bert_folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        TextEncoder(TextOptions(encoder=str(bert_folder)), T)
