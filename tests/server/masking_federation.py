"""Three sites that mask as Nodes do, and a federation of them."""

from fake_federation import NAMES, PATIENTS, STEPS, Federation
from fake_sites import FakeSite

from client.node.secure_rounds import SecureRounds
from medfusion.errors import FederationError, MedFusionError
from medfusion.transport.requests import Received, error_reply


def key(number):
    return f"{number}" * 43 + "="


KEY = key(7)  # of a site that nobody has seen
SECURE = "server.secure_aggregation={threshold=2, update_range=16}"


class MaskingFakeSite(FakeSite):
    """``deaf`` holds pairs of round and step that the site does not answer."""

    def begin(self, folder, deaf=()):
        self.secure = SecureRounds(
            self.name,
            self.name.encode().ljust(32),
            folder,
            patients=PATIENTS[self.name],
        )
        self.signer, self.folder = self.secure.signer, folder
        self.deaf = set(deaf)
        self.replies = []
        return self

    def answer(self, kind, content):
        request = Received.parse(content)
        step = (request.secagg or {}).get("step", "mask")
        if request.secagg is not None and (request.round, step) in self.deaf:
            return error_reply(FederationError("lost"))
        try:
            reply = super().answer(kind, content)
            self.replies.append(reply)
            return reply
        except MedFusionError as error:
            return error_reply(error)

    def secagg(self, content, number):
        request = Received.parse(content)
        self.run_id = request.request.settings.run_id
        return self.secure.answer(request, request.request.settings)

    def train(self, content, number):
        request = Received.parse(content)
        reply = super().train(content, number)
        return self.secure.masked(reply, request, request.request.settings)


def make_masking(folder, deaf=None, *sets):
    part = Federation(folder, SECURE, *sets)
    for node, name in NAMES.items():
        site = MaskingFakeSite(name, part.task.to_json(), PATIENTS[name], STEPS[name])
        part.sites[name] = site.begin(folder / name, (deaf or {}).get(name, ()))
        part.grid.sites[node] = site
    return part
