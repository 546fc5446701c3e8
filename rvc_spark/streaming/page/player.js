// The live player: a stream of packets is heard, seen and kept while it comes.
//
// The module that a page loads is take.js, sound.js, picture.js, deck.js, face.js and this file, joined in that order,
// with RING_SOURCE below holding the text of ring.js. createPlayer() is the whole of it, for any page that has packets;
// the default export fits it to a notebook's widget.

const RING_SOURCE = __RING_SOURCE__;

// send(message): tells the sender. source(receive): is given the function that takes (message, buffers); what it
// returns is called at the end. key: the name of this player in globalThis.rvcSparkPlayers.
export function createPlayer({ send, source, key }) {
  const deck = new Deck(send);
  const players = (globalThis.rvcSparkPlayers ??= new Map());
  const player = {
    receive: (message, buffers) => {
      if (message.t === "open" && message.key) rename(message.key);
      deck.receive(message, buffers);
    },
    show: (element) => {
      const face = new Face(deck, element);
      return () => face.remove();
    },
    close: () => {
      unsubscribe?.();
      deck.close();
      if (players.get(name) === player) players.delete(name);
    },
    stats: () => deck.stats(), // with what was captured: not to be asked often
    get now() { return deck.now(); },
    get run() { return deck.run?.run; },
    get mode() { return deck.output?.mode ?? deck.final?.mode ?? "none"; },
    get state() { return deck.state; },
    get context() { return deck.context; },
  };
  let name = key ?? `player ${players.size}`;
  const rename = (better) => {
    players.delete(name);
    name = better;
    players.set(name, player);
  };
  rename(name);
  const unsubscribe = source?.(player.receive);
  return player;
}

// A notebook's widget: called once for each model, so what it returns shares one player.
export default function widget() {
  let player;
  return {
    // Messages wait until this returns, so it must listen before it does, and must not wait for anything.
    initialize({ model }) {
      player = createPlayer({
        key: model.get("key"),
        send: (message) => model.send(message),
        source: (receive) => {
          model.on("msg:custom", receive);
          return () => model.off("msg:custom", receive);
        },
      });
      return () => player.close();
    },

    // Sound begins here and not above: Colab makes a model for every output frame, and only the one that is seen may
    // speak.
    render({ el }) {
      return player.show(el);
    },
  };
}
