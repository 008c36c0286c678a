"""Texts and conversations: what is learned, and what is refused by row."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recipe_jax.data.files import DataError
from recipe_jax.data.texts import Document, read_documents, tokenize_documents
from recipe_jax.huggingface.tokenizers import PLAIN_CHAT_TEMPLATE

CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello you"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "so long"},
]


def make_tokenizer(template: str = PLAIN_CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token for each character, `<` begins and `>` ends."""
    characters = ["<", ">", *sorted(set("abcdefghijklmnopqrstuvwxyz: \n|"))]
    vocabulary = {character: i for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=">"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="< $A", special_tokens=[("<", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<", eos_token=">", chat_template=template
    )


def learned(document: Document, tokenizer=None) -> tuple[str, str]:
    """All of a document's text, and the part that is learned."""
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    sequences = tokenize_documents([document], tokenizer)
    counts = sequences.weights > 0
    return tokenizer.decode(sequences.tokens), tokenizer.decode(sequences.tokens[counts])


def test_of_a_text_everything_is_learned_its_end_too():
    assert learned(Document(text="a b")) == ("<a b>", "<a b>")


def test_of_a_conversation_only_answers_are_learned():
    whole, answers = learned(Document(messages=tuple(CHAT)))
    assert whole.startswith("<system: be kind\nuser: hi\nassistant: hello you\n")
    assert answers == " hello you\n so long\n>"


def test_a_template_that_begins_and_ends_by_itself_gets_nothing_twice():
    template = (
        "<{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    whole, answers = learned(Document(messages=tuple(CHAT[1:3])), make_tokenizer(template))
    assert whole == "<user:hiassistant:hello you>" and answers == "hello you>"


def test_a_chat_template_alone_says_how_a_conversation_begins():
    template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    whole, answers = learned(Document(messages=tuple(CHAT[1:3])), make_tokenizer(template))
    assert whole == "hi|hello you|>" and answers == "hello you|>"


def test_no_end_is_learned_after_a_question():
    whole, answers = learned(Document(messages=tuple(CHAT[:4])))
    assert whole.endswith("user: bye\n") and answers == " hello you\n"


def test_what_a_template_marks_is_what_is_learned():
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}a:{%- generation %}"
        "{{ m['content'] }}{% endgeneration %}|{% else %}{{ m['content'] }}|{% endif %}{% endfor %}"
    )
    whole, answers = learned(Document(messages=tuple(CHAT[1:])), make_tokenizer(template))
    assert whole == "hi|a:hello you|bye|a:so long|>" and answers == "hello youso long>"


def test_answers_that_are_written_anew_later_are_sequences_each():
    """As the template of Qwen3 does, which keeps the thoughts of the last answer only."""
    template = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% if loop.last and m['role'] == 'assistant' %}hm {% endif %}{{ m['content'] }}|"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    sequences = tokenize_documents([Document(messages=tuple(CHAT[1:]))], tokenizer)
    rows = [slice(*sequences.offsets[i : i + 2]) for i in range(len(sequences))]
    first = "user:hi|assistant:hello you|"
    assert [tokenizer.decode(sequences.tokens[row]) for row in rows] == [
        "user:hi|assistant:hm hello you|>",
        f"{first}user:bye|assistant:hm so long|>",
    ]
    assert [
        tokenizer.decode(sequences.tokens[row][sequences.weights[row] > 0]) for row in rows
    ] == [
        "hm hello you|>",
        "hm so long|>",
    ]


def test_a_template_that_writes_the_past_anew_is_refused():
    template = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="conversation 1: the chat template writes message 3"):
        learned(Document(messages=tuple(CHAT)), make_tokenizer(template))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Expected an expression"),
        ("{{ messages[9].content.text + 1 }}", "no element 9"),
    ],
)
def test_a_template_that_fails_is_refused(template, reason):
    with pytest.raises(DataError) as caught:
        learned(Document(messages=tuple(CHAT[1:3])), make_tokenizer(template))
    message = str(caught.value)
    rule = "conversation 1: the chat template cannot write the roles ['user', 'assistant'] ("
    assert message.startswith(rule)
    assert reason in message and "\n" not in message


def test_files_are_read(tmp_path):
    plain, rows = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_bytes("\ufeffone\ntwo\r\n\r\n\r\nthree\n".encode())
    assert [d.text for d in read_documents(plain)] == ["one\ntwo", "three"]
    rows.write_text(f'{{"text": "x"}}\n\n{json.dumps({"messages": CHAT, "id": 3})}\n')
    assert read_documents(rows) == [Document(text="x"), Document(messages=tuple(CHAT))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "b.jsonl:2: not readable as JSON"),
        ("[]", "b.jsonl:2: must be an object with either 'messages' or 'text'"),
        ('{"text": "a", "messages": []}', "either 'messages' or 'text'"),
        ('{"text": " "}', "b.jsonl:2: text=' ' must be a text that is not empty"),
        ('{"text": "a\\ud800"}', r"b.jsonl:2: text: character 1 is '\\ud800', which is no char"),
        ("[" * 100_000, "b.jsonl:2: not readable as JSON .maximum recursion depth"),
        ('{"messages": []}', r"b.jsonl:2: messages=\[\] must be a list that is not empty"),
        ('{"messages": [3]}', "b.jsonl:2: message 1=3 must be an object"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "message 1: role='bot' must be one"),
        (
            '{"messages": [{"role": "user", "content": ""}]}',
            "message 1: content='' must be a text that is not empty",
        ),
        (
            '{"messages": [{"role": "user", "content": "\\udc00"}]}',
            r"message 1: content: character 0 is '\\udc00', which is no character of UTF-8",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}]}',
            "messages must hold one of role 'assistant'",
        ),
    ],
)
def test_a_malformed_row_is_refused_by_its_number(tmp_path, row, message):
    path = tmp_path / "b.jsonl"
    path.write_text(f'{{"text": "x"}}\n{row}\n')
    with pytest.raises(DataError, match=message) as caught:
        read_documents(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(tmp_path / "missing.txt")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="byte 3 is no UTF-8"):
        read_documents(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("\n\n")
    with pytest.raises(DataError, match="holds no text"):
        read_documents(tmp_path / "b.txt")
