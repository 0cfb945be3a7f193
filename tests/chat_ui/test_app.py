"""The app as a socket sees it: what a page gets when it behaves, and when it does not."""

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import socketio
from argon2 import PasswordHasher
from sqlalchemy import text

from chat_ui import accounts as accounts_module
from chat_ui import live, server, soak
from chat_ui.engine import ModelInfo
from chat_ui.history import GONE
from chat_ui.texts import LONGEST_MESSAGE
from tests.chat_ui.fakes import PATIENCE, Serve, model


def play(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_a_message_is_answered_and_the_thread_resumed(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            answer = await page.ask("hello", model="demo", compare="alone")
            assert answer["output"] == "demo heard: hello "
            assert answer["metadata"]["model"] == "demo"
            below = page.below()[-1]
            assert below["label"] == "demo (answers, made 2026-11-27 12:00)"
            assert below["figures"][:3] == ["3 tokens", "first after 50 ms", "2 tokens/s"]
            await page.ask("and more", model="other")  # the model changes, the conversation stays
            assert [turn.text for turn in home.service.requests[-1].prompt.turns] == [
                "hello", "demo heard: hello ", "and more",
            ]  # fmt: skip
            await page.socket.emit("chat_settings_change", {"top_k": 7, "temperature": -5, "evil": "x" * 99})
            await page.ask("third")
            assert home.service.requests[-1].sampling.top_k == 7
            assert home.service.requests[-1].sampling.temperature == 0

            again = home.page()
            again.http.cookies = page.http.cookies
            await page.socket.disconnect()
            await again.open(thread=await page.thread())
            thread = await again.until("resume_thread")
            said = [step["output"] for step in thread["steps"] if step["type"].endswith("message")]
            assert said == [
                "hello", "demo heard: hello ", "and more", "other heard: and more ", "third", "demo heard: third ",
            ]  # fmt: skip
            assert len(thread["elements"]) == 3
            settings = {item["id"]: item["initial"] for item in again.of("chat_settings")[-1]}
            assert (settings["top_k"], settings["temperature"]) == (7, 0)
            await again.ask("fourth")
            assert len(home.service.requests[-1].prompt.turns) == 7

    play(scenario())


def test_stop_edit_regenerate_and_compare(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            question = await page.send("go on slowly")
            await page.shows("demo heard: go on slowly ")
            await page.send("at the same time")  # from a client that does not wait
            await page.shows("One answer at a time")
            await page.socket.emit("stop")
            await page.ended(1)
            stopped = page.answers()[0]
            assert stopped["output"] == "demo heard: go on slowly "
            assert page.below()[-1]["figures"][-1] == "stopped"

            home.service.go_on = lambda: True
            await page.act("regenerate", id=stopped["id"])
            await page.ended(2)
            (anew,) = page.answers()
            assert anew["output"] == "demo heard: go on slowly on on on on on "
            assert anew["id"] != stopped["id"]

            await page.socket.emit("edit_message", {"message": {"id": question, "output": "edited"}})
            await page.ended(3)
            assert [answer["output"] for answer in page.answers()] == ["demo heard: edited "]
            assert [turn.text for turn in home.service.requests[-1].prompt.turns] == ["edited"]

            both = await page.ask("both", model="demo", compare="other")
            assert [side["text"] for side in both["metadata"]["sides"]] == ["demo heard: both ", "other heard: both "]
            await page.act("choose", id=both["id"], side=1)
            await page.ask("next")
            assert home.service.requests[-1].prompt.turns[3].text == "other heard: both "

            exported = await page.http.get(f"/export/{await page.thread()}.json")
            messages = exported.json()["messages"]
            assert [message.get("text") for message in messages] == ["edited", None, "both", None, "next", None]
            assert [answer["model"] for answer in messages[3]["answers"]] == ["demo", "other"]
            markdown = (await page.http.get(f"/export/{await page.thread()}.md")).text
            assert "## You\n\n> edited\n" in markdown
            assert (await page.http.get(f"/export/{uuid.uuid4()}.md")).status_code == 404

    play(scenario())


@pytest.mark.parametrize("kind", ["tuned", "classifier"])
def test_an_answer_can_be_stopped_before_it_begins(house: Serve, tmp_path: Path, kind: str) -> None:
    """The page shows the button as soon as the message is there, and a busy server then still looks for the model."""

    async def scenario() -> None:
        async with house(model("demo", kind=kind, classes=("bad", "good"))) as home:
            page = await home.open()
            go_on, look = threading.Event(), home.service.models.info

            def look_slowly(name: str) -> ModelInfo:
                assert go_on.wait(PATIENCE)
                return look(name)

            home.service.models.info = look_slowly
            await page.send("go on slowly", model="demo")
            await page.until("task_start")
            await page.socket.emit("stop")
            async with asyncio.timeout(PATIENCE):
                while '"stop"' not in (tmp_path / "state" / "audit.jsonl").read_text():
                    await asyncio.sleep(0.01)
            go_on.set()
            await page.ended(1)
            assert page.below()[-1]["figures"][-1] == "stopped"
            home.service.go_on = lambda: True
            await page.ask("go on slowly", model="demo")
            assert page.below()[-1]["figures"][-1] != "stopped"

    play(scenario())


def test_a_page_that_is_opened_again_goes_on_with_the_answer(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.send("go on slowly", model="other")
            await page.shows("other heard: go on slowly ")
            second = await home.page().open(thread=await page.thread())
            thread = await second.until("resume_thread")
            answer = thread["steps"][-1]
            assert answer["output"] == "other heard: go on slowly "
            offered = second.of("set_modes")[-1][0]["options"]
            assert [option["id"] for option in offered if option["default"]] == ["other"]
            await second.until("task_start")
            await page.socket.disconnect()
            home.service.go_on = lambda: True
            await second.ended(1)
            assert second.of("update_message")[-1]["output"] == "other heard: go on slowly on on on on on "
            await second.ask("next")
            assert len(home.service.requests[-1].prompt.turns) == 3

    play(scenario())


@pytest.mark.parametrize("when", ["the thread is read", "the models are looked for"])
def test_an_answer_that_ends_while_its_page_is_opened_again(house: Serve, when: str) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.send("go on slowly")
            await page.shows("demo heard: go on slowly ")
            thread_id = await page.thread()
            read, look = home.chat.history.get_thread, home.service.models.available
            reads: list[str] = []

            async def end_meanwhile() -> None:
                home.service.go_on = lambda: True
                while home.chat.live:
                    await asyncio.sleep(0.001)

            async def read_too_early(thread_id: str) -> Any:
                known = await read(thread_id)
                reads.append(thread_id)
                if len(reads) == 2:  # the first one asks whose it is
                    await end_meanwhile()
                return known

            def look_slowly() -> Any:
                asyncio.run_coroutine_threadsafe(end_meanwhile(), loop).result(PATIENCE)
                return look()

            loop = asyncio.get_running_loop()
            if when == "the thread is read":
                home.chat.history.get_thread = read_too_early
            else:
                home.service.models.available = look_slowly
            second = await home.page().open(thread=thread_id)
            thread = await second.until("resume_thread")
            answer = thread["steps"][-1]
            assert answer["output"] == "demo heard: go on slowly on on on on on "
            assert "unfinished" not in answer["metadata"]
            assert [element["props"]["done"] for element in thread["elements"]] == [True]
            assert not second.of("task_start")  # of which nobody would tell it the end
            await second.ask("next")
            assert len(home.service.requests[-1].prompt.turns) == 3

    play(scenario())


def test_a_classifier_answers_like_any_other(house: Serve) -> None:
    async def scenario() -> None:
        async with house(model("demo"), model("mood", kind="classifier", classes=("bad", "good"))) as home:
            page = await home.open()
            first = await page.ask("all good?", model="mood")
            assert first["output"].startswith("**good**, 75%\n\n| class | probability |")
            assert page.below()[-1]["figures"][0] == "3 tokens read"
            assert page.below()[-1]["label"].startswith("mood (tells apart bad and good, made ")
            await page.act("regenerate", id=first["id"])
            await page.ended(2)
            (anew,) = page.answers()
            assert anew["output"] == first["output"]
            assert anew["id"] != first["id"]
            both = await page.ask("bad weather", model="demo", compare="mood")
            assert [side["text"][:8] for side in both["metadata"]["sides"]] == ["demo hea", "**bad**,"]
            await page.ask("so?", model="demo")  # which reads what the classifier said
            assert home.service.requests[-1].prompt.turns[1].text == first["output"]
            assert len(home.service.requests) == 2
            thread = await (await home.page().open(thread=await page.thread())).until("resume_thread")
            assert first["output"] in [step["output"] for step in thread["steps"]]
            assert "> **good**, 75%" in (await page.http.get(f"/export/{await page.thread()}.md")).text

    play(scenario())


def test_faults_of_the_engine_are_told(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.ask("too many")
            assert page.below()[-1]["error"] == "the queue is full: try again in a moment"
            await page.ask("break it now")
            assert page.below()[-1]["error"] == "the model broke"
            await page.ask("gone", model="deleted")
            assert "there is no model 'deleted'" in page.answers()[-2]["output"]
            assert page.answers()[-1]["output"] == "demo heard: gone "
            home.service.models.infos.clear()
            await page.ask("nobody")
            assert "make chat-model" in page.answers()[-1]["output"]

            def submit(request: Any) -> None:
                raise RuntimeError("a bug")

            home.service.models.infos.append(model("demo"))
            home.service.submit = submit
            await page.ask("bug")
            assert "a fault of the server's" in page.answers()[-1]["output"]

    play(scenario())


def test_malformed_events_do_nothing(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            v1 = str(uuid.uuid1())
            sound = {"id": str(uuid.uuid4()), "output": "x"}
            wrong: list[Any] = [
                None, "x", 1, [], {"message": None}, {"message": []}, {"message": {}}, {"message": sound | {"id": v1}},
                {"message": sound | {"id": "x' OR 1=1 --"}}, {"message": sound | {"output": None}},
                {"message": sound | {"output": {"a": []}}}, {"message": sound | {"output": " \n"}},
            ]  # fmt: skip
            for payload in wrong:
                for event in ("client_message", "edit_message"):
                    await page.socket.emit(event, payload)
                await page.socket.emit("chat_settings_change", payload)
            for event in ("message_favorite", "audio_start", "audio_chunk", "window_message", "nonsense"):
                await page.socket.emit(event, {"message": sound})
            await page.socket.emit("edit_message", {"message": sound})  # of nobody
            for _ in range(3):
                await page.socket.emit("connection_successful")
            await page.send("x" * 100_000)
            await page.shows(f"at most {LONGEST_MESSAGE:,}")
            # the client's own words on who it is, which type it sends, and where
            forged = sound | {"type": "assistant_message", "name": "root", "threadId": str(uuid.uuid4())}
            forged |= {"modes": {"model": ["x"]}, "metadata": {"sides": 1}, "parentId": "x", "isError": True}
            await page.socket.emit("client_message", {"message": forged, "fileReferences": [{"id": "x"}]})
            await page.ended(1)
            thread = await home.chat.history.get_thread(await page.thread())
            first = next(step for step in thread["steps"] if step["type"] != "run")
            assert (first["type"], first["name"], first["metadata"]) == ("user_message", "you", {})
            assert len(home.service.requests) == 1
            assert len(page.of("set_modes")) == 1
            for action in ("regenerate", "choose"):
                for payload in (
                    {},
                    {"id": 1},
                    {"id": {"a": 1}, "side": []},
                    {"id": page.answers()[-1]["id"], "side": 9},
                ):
                    assert (await page.act(action, **payload)).status_code == 200
            assert (await page.act("delete_everything")).status_code == 404
            await page.socket.emit("client_message", {"message": sound | {"output": "x" * 2_000_000}})
            async with asyncio.timeout(PATIENCE):
                await page.socket.wait()  # it is thrown out
            assert (await page.http.get("/ready")).json()["ready"]

    play(scenario())


def test_sockets_are_for_pages_of_ours(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            for settings in (
                {"origin": "https://evil.example"}, {"sessionId": "1"}, {"sessionId": None}, {"sessionId": ["x"]},
            ):  # fmt: skip
                with pytest.raises(socketio.exceptions.ConnectionError):
                    await home.page().open(**settings)
            page = home.page()
            page.http.cookies.set("access_token", "forged")
            with pytest.raises(socketio.exceptions.ConnectionError):
                await page.open()
            # such as one of another server on this machine: cookies know no ports. The page needs its words to log in
            assert (await page.http.get("/user")).status_code == 401
            assert (await page.http.get("/project/translations")).status_code == 200
            injected = await home.open(threadId="x'; DROP TABLE steps; --")
            assert (await injected.ask("hello"))["output"] == "demo heard: hello "
            polling = await injected.http.get("/ws/socket.io/?EIO=4&transport=polling")
            assert polling.status_code == 400

    play(scenario())


def test_what_nobody_needs_is_not_there(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.ask("hello")
            for method, path in [
                ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/redoc"), ("POST", "/project/file"),
                ("PUT", "/feedback"), ("PUT", "/project/element"), ("PUT", "/project/thread/share"), ("POST", "/mcp"),
                ("GET", f"/project/share/{await page.thread()}"), ("POST", "/auth/jwt"), ("GET", "/copilot/index.js"),
                ("GET", "/nonsense"),
            ]:  # fmt: skip
                assert (await page.http.request(method, path, json={})).status_code in (404, 405), path
            for path in ("/public/../secret", "/public/%2e%2e/%2e%2e/secret", "/assets/..%2f..%2fsecret"):
                assert (await page.http.get(path)).status_code in (400, 404)
            html = (await page.http.get("/")).text
            assert "https://" not in html.replace("https://github.com", "")
            large = await page.http.post("/project/threads", content=b"x" * 1_100_000)
            assert large.status_code == 413

            async def drops() -> AsyncIterator[bytes]:
                for _ in range(20):
                    yield b"x" * 100_000

            assert (await page.http.post("/project/threads", content=drops())).status_code in (400, 413)

    play(scenario())


def test_headers_and_foreign_pages(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home, httpx.AsyncClient(base_url=home.base) as client:
            page = await client.get("/")
            assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
            assert page.headers["x-content-type-options"] == "nosniff"
            evil = {"origin": "https://evil.example"}
            assert (await client.post("/auth/header", headers=evil)).status_code == 403
            answer = await client.options("/user", headers=evil | {"access-control-request-method": "GET"})
            assert "access-control-allow-origin" not in answer.headers
            rebound = await client.post("/auth/header", headers={"host": "evil.example"})
            assert rebound.status_code == 403
            assert (await client.post("/auth/header", headers={"origin": home.base})).status_code == 200

    play(scenario())


def test_more_messages_than_allowed(house: Serve) -> None:
    async def scenario() -> None:
        async with house(requests_per_minute=2) as home:
            page = await home.open()
            second = await home.open()  # another page of the same user
            await page.ask("one")
            await second.ask("two")
            await page.send("three")
            await page.shows("more than 2 messages per minute")
            await page.act("regenerate", id=page.answers()[0]["id"])
            assert len(home.service.requests) == 2

    play(scenario())


def test_people_log_in_and_out(house: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "HASHER", PasswordHasher(time_cost=1, memory_cost=64))
    accounts = server.Accounts(tmp_path / "state" / "accounts.json")
    accounts.add("ada", "correct horse")
    accounts.add("mallory", "battery staple")

    async def scenario() -> None:
        async with house(host="0.0.0.0", origin=("https://chat.example.org",)) as home:
            ada, mallory = home.page(), home.page()
            for page in (ada, mallory):
                page.http.headers["host"] = "chat.example.org"
            assert (await ada.log_in()).status_code == 400
            assert (await ada.log_in("ada", "wrong")).status_code == 401
            assert (await ada.log_in("nobody", "wrong")).status_code == 401
            entered = await ada.log_in("ada", "correct horse")
            assert entered.status_code == 200
            cookie = entered.headers["set-cookie"]
            assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=lax", "Max-Age=43200"))
            await mallory.log_in("mallory", "battery staple")
            token = ada.http.cookies["access_token"] if "access_token" in ada.http.cookies else cookie.split("=")[1]
            jar = {"cookie": f"access_token={token.split(';')[0]}"}
            assert (await ada.http.get("/user", headers=jar)).json()["identifier"] == "ada"
            assert (await ada.http.post("/logout", headers=jar)).status_code == 200
            assert (await ada.http.get("/user", headers=jar)).status_code == 401
            for _ in range(10):
                last = await ada.log_in("ada", "wrong")
            assert last.status_code == 429

    play(scenario())


def test_chat_goes_on_without_its_database(house: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.ask("kept")
            file = tmp_path / "state" / "history.sqlite"
            await home.chat.history.close()  # when all is written: it opens again by itself
            for part in tmp_path.glob("state/history.sqlite*"):
                part.unlink()
            file.mkdir()
            answer = await page.ask("not kept")
            assert answer["output"] == "demo heard: not kept "
            assert page.of("toast")[-1] == {"message": GONE, "type": "warning"}
            ready = (await page.http.get("/ready")).json()
            assert ready["ready"]
            assert ready["degraded"] == ["no history"]
            listed = await page.http.post("/project/threads", json={"pagination": {"first": 5}, "filter": {}})
            assert listed.status_code in (404, 503)
            fresh = await home.page().open(thread=await page.thread())  # reopened, which begins a new thread
            assert (await fresh.ask("hello"))["output"] == "demo heard: hello "

    play(scenario())


def test_an_answer_is_finished_and_saved_before_the_end(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.send("go on slowly")
            await page.shows("demo heard: go on slowly ")
            draining = asyncio.create_task(home.chat.drain(PATIENCE))
            await asyncio.sleep(0)
            assert (await page.http.get("/ready")).status_code == 503
            assert (await page.http.get("/health")).status_code == 200
            await page.send("another")
            await page.shows("being restarted")
            home.service.go_on = lambda: True
            await draining
            thread = await home.chat.history.get_thread(await page.thread())
            outputs = [step["output"] for step in thread["steps"]]
            assert "demo heard: go on slowly on on on on on " in outputs

    play(scenario())


def test_an_answer_that_a_killed_server_left(house: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SAVE_SECONDS", 0.01)

    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.send("go on slowly")
            await page.shows("demo heard: go on slowly ")
            async with asyncio.timeout(PATIENCE):
                while len((await home.chat.history.get_thread(await page.thread()))["steps"]) < 2:
                    await asyncio.sleep(0.01)
            writing = home.chat.live.pop(await page.thread())
            again = await home.page().open(thread=await page.thread())
            thread = await again.until("resume_thread")
            assert thread["steps"][-1]["metadata"]["unfinished"]
            assert thread["elements"][-1]["props"]["figures"] == ["stopped"]
            home.chat.live[await page.thread()] = writing
            await page.socket.emit("stop")
            await page.ended(1)

    play(scenario())


def test_a_conversation_that_is_deleted_does_not_come_back(house: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SAVE_SECONDS", 0.01)

    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.send("go on slowly")
            await page.shows("demo heard: go on slowly ")
            deleted = await page.http.request("DELETE", "/project/thread", json={"threadId": await page.thread()})
            assert deleted.status_code == 200
            await page.ended(1)  # nobody told it to stop
            assert page.below()[-1]["figures"][-1] == "stopped"
            assert await home.chat.history.get_thread(await page.thread()) is None

    play(scenario())


def refuse_rude_words(said: str) -> str | None:
    return "Please be polite." if "rude" in said else None


def test_a_content_filter_refuses_questions_and_answers(house: Serve, tmp_path: Path) -> None:
    async def scenario() -> None:
        name = f"{refuse_rude_words.__module__}:{refuse_rude_words.__name__}"
        async with house(content_filter=name) as home:
            page = await home.open()
            assert (await page.ask("a rude question"))["output"] == "Please be polite."
            await page.socket.emit("chat_settings_change", {"system_prompt": "Be rude."})
            assert (await page.ask("a question"))["output"] == "Please be polite."
            await page.socket.emit("chat_settings_change", {"system_prompt": ""})
            assert not home.service.requests
            home.service.models.infos[0] = model("rude")
            answer = await page.ask("a question", model="rude")
            assert answer["output"] == ""
            assert page.below()[-1]["error"] == "The content filter has removed this answer."
            entries = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
            assert [entry["event"] for entry in entries] == ["open", *["message"] * 3, "answer"]
            assert entries[-1]["reason"] in ("stop", "cancelled", "error")
            assert "text" not in entries[1]

    play(scenario())


def test_what_an_answer_waits_for_is_shown(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.send("download it first")
            await page.when(lambda: page.below() and "loading" in page.below()[-1]["waiting"])
            assert page.below()[-1]["waiting"] == "loading the model: 50% of 500 MB"
            waits = [element["props"]["waiting"] for element in page.of("element")]
            assert waits[0] == "waiting: number 1 in the queue"
            home.service.go_on = lambda: True
            await page.ended(1)
            assert page.below()[-1]["waiting"] == ""

    play(scenario())


def test_without_a_checkpoint_a_page_says_how_to_make_one(house: Serve) -> None:
    async def scenario() -> None:
        async with house(model("gpt2", kind="gpt2", made=None, template=None, is_here=False)) as home:
            page = await home.open()
            await page.shows("make chat-model")
            assert "GPT-2" in page.answers()[-1]["output"]
            options = page.of("set_modes")[-1][0]["options"]
            assert "downloaded first" in options[0]["description"]

    play(scenario())


def test_those_who_watch(house: Serve) -> None:
    async def scenario() -> None:
        async with house() as home:
            page = await home.open()
            await page.ask("hello")
            assert (await page.http.get("/health")).json() == {"status": "ok"}
            assert (await page.http.get("/ready")).json() == {
                "ready": True, "closing": False, "engine": True, "degraded": [],
            }  # fmt: skip
            lines = (await page.http.get("/metrics")).text.splitlines()
            for line in (
                "chat_sockets 1.0", "chat_engine_requests_total 1.0", "chat_up_target_ratio 0.999", "chat_up_ratio 1.0",
                "chat_history_saved 1.0",
            ):  # fmt: skip
                assert line in lines
            assert any(line.startswith("chat_event_loop_delay_seconds_bucket") for line in lines)

    play(scenario())


def test_fifty_pages_at_once(house: Serve) -> None:
    async def scenario() -> None:
        async with house(requests_per_minute=10_000) as home:
            result = await soak.soak(soak.Config(url=home.base, sockets=50, talking=50, messages=100))
            assert (result["opened"], result["complete"], result["failed"]) == (50, 100, 0)
            async with home.chat.history.engine.connect() as connection:
                saved = await connection.execute(text("SELECT COUNT(*) FROM steps WHERE type = 'assistant_message'"))
                assert saved.scalar_one() == 100

    play(scenario())


def test_memory_is_freed_when_a_page_closes(house: Serve) -> None:
    async def scenario() -> None:
        from chainlit.chat_context import chat_contexts
        from chainlit.session import ws_sessions_id
        from chainlit.user_session import user_sessions

        async with house() as home:
            for _ in range(3):
                page = await home.open()
                await page.ask("hello")
                await page.close()
            page = await home.open()
            await page.send("go on slowly")
            await page.shows("demo heard: go on slowly ")
            await page.close()
            async with asyncio.timeout(PATIENCE):
                while page.session in ws_sessions_id:
                    await asyncio.sleep(0.01)
            home.service.go_on = lambda: True  # it is finished when the page has been closed
            await asyncio.wait(home.chat.tasks.values())
            for kept in (chat_contexts, ws_sessions_id, user_sessions):
                async with asyncio.timeout(PATIENCE):
                    while any(page.session in kept for page in home.pages):
                        await asyncio.sleep(0.01)
            assert not home.chat.live
            assert not home.chat.tasks

    play(scenario())
