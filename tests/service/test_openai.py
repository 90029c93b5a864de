"""An unmodified client of OpenAI draws from the service."""

import base64
import io
import json

import pytest
from PIL import Image

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")


@pytest.fixture
def client(url, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def picture(content):
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_it_draws_pictures_that_say_how_they_were_drawn(client):
    how = {"seed": 1, "bank_size": 4, "scale": 2.0}
    answer = client.images.generate(model="tiny", prompt="a red cat", n=2, size="16x24", extra_body=how)
    assert [picture(one.b64_json).size for one in answer.data] == [(16, 24)] * 2
    assert answer.size == "16x24"
    said = json.loads(picture(answer.data[1].b64_json).info["lidar"])
    assert said["job"]["prompts"] == [{"prompt": "a red cat"}]
    assert said["job"]["settings"]["scale"] == 2.0
    assert 0 < answer.data[0].model_extra["reward"] < 1
    assert answer.data[0].revised_prompt is None
    assert answer.model_extra["seed"] == 1


def test_a_bank_serves_the_next_request(client):
    first = client.images.generate(prompt="a blue cat", extra_body={"seed": 1})
    again = client.images.generate(prompt="a blue cat", extra_body={"bank_id": first.model_extra["bank_id"]})
    assert again.model_extra["bank_id"] == first.model_extra["bank_id"]
    assert again.model_extra["seed"] != 1
    same = client.images.generate(prompt="a blue cat", extra_body={"seed": 1})
    assert same.data[0].b64_json == first.data[0].b64_json


def test_it_streams_with_pictures_under_way(client):
    events = list(client.images.generate(prompt="a dog", stream=True, partial_images=2, extra_body={"steps": 6}))
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1]
    assert all(picture(event.b64_json).size == (16, 16) for event in events)


def test_it_streams_without_them(client):
    (event,) = client.images.generate(prompt="a dog", stream=True)
    assert event.type == "image_generation.completed"


def test_what_is_wrong_names_the_field_and_the_mend(client):
    def refused(kind, **request):
        with pytest.raises(kind) as error:
            client.images.generate(**{"prompt": "a cat", **request})
        return error.value.param, error.value.body["message"]

    other, known = openai.UnprocessableEntityError, openai.BadRequestError
    assert refused(other, model="tine") == ("model", "unknown model 'tine'; did you mean 'tiny'?")
    assert refused(other, n=99) == ("n", "n must be at most 8, got 99: ask for fewer images")
    assert refused(other, size="17x16")[0] == "size"
    assert refused(known, size="big") == ("size", "size must be auto, or WIDTHxHEIGHT as 512x512, got 'big'")
    assert refused(known, response_format="url") == (
        "response_format",
        "response_format must be 'b64_json', got 'url'",
    )
    assert refused(other, extra_body={"reward": "os:system"})[0] == "reward"
    assert refused(other, extra_body={"method": "best-of-9999"})[0] == "method"
    assert refused(known, extra_body={"seed": True}) == ("seed", "seed must be a whole number, got True")
    assert refused(other, extra_body={"scale": 1e300})[1].startswith("guidance or scheduler made NaN or infinity")


def test_a_stream_says_what_went_wrong(client):
    with pytest.raises(openai.APIError, match="made NaN or infinity"):
        list(client.images.generate(prompt="a cat", stream=True, extra_body={"scale": 1e300}))


def test_it_lists_its_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
