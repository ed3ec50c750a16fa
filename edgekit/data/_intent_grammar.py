"""Sentences said to a voice assistant, as templates: data for `edgekit.data.intents`.

In a template ``(a|b)`` is one of several, ``[a]`` may be left out, and ``{slot}`` is one of a
slot's values. Every intent has templates for training, for development and for testing; those of
one are never used for another, so that a model is asked about phrasings that it has not seen.
Some are near another intent's on purpose: a timer and an alarm, a song and its volume, a person
called and a person spoken of.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["INTENTS", "SLOTS", "Templates"]


class Templates(NamedTuple):
    """The templates of one intent, by split."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]


SLOTS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "span": (
        ("ten minutes", "5 minutes", "half an hour", "an hour", "30 seconds", "twenty minutes",
         "two hours", "45 minutes", "a minute and a half", "three quarters of an hour"),
        ("eight minutes", "90 seconds", "an hour and ten minutes", "a quarter of an hour"),
    ),
    "clock": (
        ("7", "six thirty", "half past five", "8 am", "noon", "quarter to nine", "7:15", "ten pm",
         "six o'clock", "a quarter past six"),
        ("5:45", "twenty to eight", "midnight", "eleven in the morning"),
    ),
    "day": (
        ("today", "tomorrow", "on monday", "this weekend", "tonight", "on friday", "this afternoon",
         "tomorrow morning"),
        ("on sunday", "next week", "the day after tomorrow", "this evening"),
    ),
    "food": (
        ("pasta", "eggs", "rice", "pizza", "tea", "bread", "potatoes"),
        ("lasagna", "cookies", "soup"),
    ),
    "artist": (
        ("the blue herons", "maria castell", "north harbor", "dj lumen", "the paper kites band",
         "otis grey", "velvet engine", "anna holm"),
        ("silver foxes", "juno park", "the late trains"),
    ),
    "genre": (
        ("jazz", "classical music", "some rock", "hip hop", "folk songs", "piano music",
         "dance music"),
        ("blues", "country music", "something acoustic"),
    ),
    "song": (
        ("summer rain", "paper moon", "running home", "the long road", "golden hour", "ocean eyes"),
        ("winter lights", "stop the clock", "call me tomorrow"),
    ),
    "room": (
        ("kitchen", "bedroom", "living room", "hall", "bathroom", "office", "garage"),
        ("nursery", "dining room", "basement", "porch"),
    ),
    "color": (("red", "blue", "warm white", "green", "orange"), ("purple", "a soft yellow")),
    "degrees": (
        ("20 degrees", "twenty one degrees", "68", "nineteen", "22 degrees", "18"),
        ("seventy", "twenty three and a half degrees"),
    ),
    "city": (
        ("berlin", "chicago", "lyon", "new york", "oslo", "kyoto", "madrid", "cape town"),
        ("lisbon", "montreal", "dublin"),
    ),
    "person": (
        ("mom", "dad", "anna", "my boss", "john", "peter miller", "grandma", "the dentist",
         "my sister", "lukas"),
        ("uncle ray", "sofia", "the landlord", "my brother", "emma stone"),
    ),
    "words": (
        ("i'm late", "i'll be home soon", "dinner is ready", "happy birthday", "call me back",
         "we need milk", "i got the tickets"),
        ("the meeting moved to four", "the lights are off", "i'm stuck in traffic"),
    ),
    "place": (
        ("the airport", "work", "home", "the nearest gas station", "central station",
         "the hospital", "12 oak street", "the beach"),
        ("the closest pharmacy", "the city museum", "uncle ray's place", "a car wash"),
    ),
    "percent": (
        ("30 percent", "five", "ten percent", "half", "eighty percent", "three"),
        ("sixty", "a quarter", "level nine"),
    ),
    "item": (
        ("milk", "a dozen eggs", "batteries", "bread", "coffee", "dish soap", "apples",
         "toilet paper"),
        ("oat milk", "light bulbs", "two lemons", "cat food"),
    ),
    "list": (("shopping list", "grocery list", "to do list"), ("packing list", "party list")),
    "task": (
        ("take out the trash", "call the bank", "water the plants", "pay the rent",
         "take my pills", "buy a present", "feed the cat"),
        ("charge the car", "pick up the kids", "turn off the oven", "book a table"),
    ),
}  # fmt: skip
"""Values of each slot: those for training and development, and those kept for testing."""

INTENTS: Final[dict[str, Templates]] = {
    "timer": Templates(
        train=(
            "set a timer for {span}", "[please] start a {span} timer", "timer for {span} [please]",
            "count down {span}", "(give|get) me a timer of {span}", "i need a timer for {span}",
            "set a {food} timer for {span}", "how long (is left|is there) on the timer",
            "(cancel|stop|pause) the [{food}] timer", "add {span} to the timer",
            "how long (until|till) the {food} is (done|ready)", "is the timer still running",
            "stop counting", "tell me when {span} have passed",
            "the {food} takes {span} set a timer", "ping me in {span}",
            "what is left on the clock for the {food}", "begin counting now",
        ),
        dev=("time {span} for the {food}", "(is|has) the {food} timer (done|run out)"),
        test=(
            "let me know when {span} are over", "the {food} needs {span} so start counting",
            "how much time (is left for|remains on) the {food}", "run a countdown of {span}",
        ),
    ),
    "alarm": Templates(
        train=(
            "set an alarm for {clock}", "wake me up at {clock}",
            "[please] wake me {day} at {clock}",
            "alarm at {clock} [please]", "(cancel|delete) my {clock} alarm", "snooze [the alarm]",
            "turn off the alarm", "what alarms (do i have|are set)",
            "set my alarm {day} to {clock}",
            "i need an alarm for {clock} {day}",
            "i want to get up at {clock} {day}", "i have to wake up {day} at {clock}",
            "five more minutes", "let me sleep until {clock}", "don't let me sleep past {clock}",
            "when does my alarm ring", "will you wake me {day}", "get me up early {day}",
            "no alarm {day}",
        ),
        dev=("i have to be up at {clock}", "change the alarm from {clock} to {clock}"),
        test=(
            "make sure i'm awake by {clock}", "get me out of bed at {clock} {day}",
            "let me sleep (a bit|ten minutes) longer", "is my alarm on {day}",
        ),
    ),
    "reminder": Templates(
        train=(
            "remind me to {task}", "remind me {day} to {task}", "[please] set a reminder to {task}",
            "at {clock} remind me to {task}", "create a reminder for {day} to {task}",
            "what reminders do i have {day}", "(delete|cancel) the reminder to {task}",
            "i need a reminder to {task} at {clock}", "reminder {task} {day}",
            "i should not forget to {task}", "let me know {day} that i have to {task}",
            "note that i have to {task} {day}", "when it is {clock} tell me to {task}",
            "what did i want to do {day}", "don't let me forget to {task}",
            "i have to {task} remind me at {clock}", "is there something i have to do {day}",
        ),
        dev=("don't forget to tell me to {task}", "give me a nudge {day} to {task}"),
        test=(
            "i must not forget to {task} {day}", "make sure that i {task} at {clock}",
            "tell me to {task} when it is {clock}", "what do i have to remember {day}",
        ),
    ),
    "list": Templates(
        train=(
            "add {item} to my {list}", "put {item} on the {list}",
            "[please] add {item} to the list",
            "what is on my {list}", "remove {item} from the {list}", "read [me] my {list}",
            "clear the {list}", "start a new {list}", "(we need|i need) {item} on the {list}",
            "we ran out of {item} put it on the list", "buy {item} add that to my list",
            "note {item} for shopping", "is {item} on my {list}", "cross {item} off the {list}",
            "there is no {item} left", "what do i have to buy", "delete {item} from my list",
            "i am out of {item}",
        ),
        dev=("take {item} off my list", "do i have {item} on the {list}"),
        test=(
            "we are out of {item} note that on the {list}", "write down {item} for the {list}",
            "we have run out of {item}", "scratch {item} from the {list}",
        ),
    ),
    "play": Templates(
        train=(
            "play {artist}", "[please] play {genre}", "play {song} by {artist}", "put on {genre}",
            "i want to hear {song}", "play my {genre} playlist", "play the new album by {artist}",
            "(start|shuffle) my playlist", "can you play {song}", "play something by {artist}",
            "find me some {genre}", "let me hear {artist}", "start {song}", "{genre} please",
            "some music please", "what about a song by {artist}", "i feel like {genre}",
            "could we have some {genre}", "look for {song} and play it",
            "i'd like to listen to {artist}", "get {song} going",
        ),
        dev=("let's listen to {artist}", "i'm in the mood for {genre}"),
        test=(
            "how about some {genre}", "give us a song by {artist}", "i would love to hear {artist}",
            "find {song} and let it run", "throw on {song}",
        ),
    ),
    "playback": Templates(
        train=(
            "pause [the music]", "stop the music", "next [(song|track)]", "skip this (song|track)",
            "resume [the music]", "go back to the last song", "play that again", "stop playing",
            "repeat this (song|track)", "turn off the music", "[please] skip ahead",
            "start the song over", "continue [playing]", "play the (next|previous) (song|track)",
            "keep playing", "(skip|forward) this one", "pause (it|the song|this)",
            "i have heard this song too often", "not this song", "another (song|one)", "go on",
            "one song (back|forward)", "play it from the (start|beginning)",
            "that is enough stop it", "go to the last track", "take the next one",
        ),
        dev=(
            "hold the music for (a second|a moment|now)", "previous (song|track)",
            "quit the music", "rewind [the (song|track)]",
        ),
        test=(
            "i don't like this (song|one) skip it", "carry on with the music",
            "go to the (following|next) one", "once more from the (start|top|beginning)",
            "that's enough music", "(halt|freeze) the (song|album|playlist)",
            "jump (forward|ahead|back) (a|one) (song|track)",
        ),
    ),
    "volume": Templates(
        train=(
            "turn it (up|down)", "turn the volume (up|down)", "set the volume to {percent}",
            "louder [please]", "volume {percent}", "mute [the speaker]", "unmute",
            "make it (louder|quieter)", "turn the music (up|down) [a bit]", "volume (up|down)",
            "[please] lower the volume",
            "i can hardly hear you", "it is too (loud|quiet)", "speak (up|louder)",
            "a bit (louder|quieter)", "softer please", "that is too loud for me",
            "set the sound to {percent}", "more volume", "the music is so loud", "full volume",
            "silence",
        ),
        dev=("(raise|reduce) the sound [to {percent}]", "not so loud", "put it at {percent}"),
        test=(
            "i can't hear (it|this|the music)", "a little (softer|quieter) please",
            "bring the sound to {percent}", "this is way too loud", "crank it up",
        ),
    ),
    "lights": Templates(
        train=(
            "turn (on|off) the lights", "turn the {room} light (on|off)", "lights (on|off)",
            "switch (on|off) the {room} lights", "dim the {room} lights",
            "set the lights to {color}",
            "make the {room} light {color}", "[please] turn on the lamp in the {room}",
            "set the {room} lights to {percent}", "brighten the {room}",
            "i can't see a thing in the {room}", "it is dark in here",
            "make it (bright|dark) in the {room}", "i forgot the light in the {room}",
            "all lights (on|off)", "is the lamp in the {room} on",
            "some {color} light in the {room}", "more light please", "put the lamp out",
            "{room} lights {color}", "close the lights in the {room}",
        ),
        dev=("kill the lights in the {room}", "is the light on in the {room}"),
        test=(
            "it is too dark in the {room}", "could we have {color} light in the {room}",
            "i left the lamp burning in the {room}", "shut off the lamps", "light up the {room}",
        ),
    ),
    "heating": Templates(
        train=(
            "set the temperature to {degrees}", "turn the heating (on|off)", "turn up the heat",
            "make it (warmer|cooler) in the {room}", "set the {room} to {degrees}",
            "turn (on|off) the air conditioning", "what is the temperature in the {room}",
            "[please] lower the thermostat", "thermostat {degrees}", "heat the {room} to {degrees}",
            "it is (cold|hot) in the {room}", "i am freezing", "we are sweating in here",
            "can you warm up the {room}", "it should be {degrees} in the {room}",
            "how hot is it in the {room}", "too (warm|cold) in here", "the {room} is like an oven",
            "is the heating on", "a bit warmer please", "cool the {room}",
        ),
        dev=("(i'm|we are) (cold|hot)", "bring the {room} down to {degrees}"),
        test=(
            "it is freezing in the {room}", "it's (much too|far too) hot in here",
            "i'd like {degrees} in the {room}", "how warm is the {room}", "cool the house down",
        ),
    ),
    "weather": Templates(
        train=(
            "what's the weather [like] {day}", "will it rain {day}", "weather in {city}",
            "what is the forecast for {city} {day}", "how (hot|cold) will it be {day}",
            "is it going to snow {day}", "[tell me] the weather for {city}",
            "do i need an umbrella {day}", "what's the temperature in {city}",
            "is it (sunny|windy) in {city}",
            "is it raining", "will the sun shine {day}", "do we get a storm {day}",
            "can i go out without a jacket {day}", "what will it be like {day}",
            "is it nice out {day}", "how many degrees is it outside",
            "do we have rain {day} in {city}", "is it warm enough for the beach {day}",
            "what kind of weather do they have in {city}",
            "should we stay in {day} because of the rain",
        ),
        dev=("should i take a coat {day}", "how is it (outside|out there) [{day}]"),
        test=(
            "can we have a picnic {day} or will it pour", "are there storms near {city} {day}",
            "what should i wear {day}", "does the sun come out {day}", "how many degrees in {city}",
        ),
    ),
    "call": Templates(
        train=(
            "call {person}", "[please] call {person} [on speaker]", "phone {person}",
            "dial {person}", "make a call to {person}", "video call {person}", "call {person} back",
            "(answer|take) the call", "hang up", "redial", "start a call with {person}",
            "i have to speak to {person}", "connect me (to|with) {person}",
            "can you reach {person}", "get me {person}", "let me talk with {person}",
            "give {person} a (call|ring)", "pick up", "call the last number again", "who called me",
            "speak with {person} on the phone",
        ),
        dev=("ring {person}", "end this call"),
        test=(
            "get {person} on the line", "i want to talk to {person}", "try {person} again",
            "pick up the phone", "put me through to {person}",
        ),
    ),
    "message": Templates(
        train=(
            "text {person} {words}", "send a message to {person}", "message {person} that {words}",
            "tell {person} {words}", "send {person} a text saying {words}", "read my messages",
            "[please] write {person} {words}", "any new messages [from {person}]",
            "reply {words}", "send an email to {person}",
            "what does {person} say", "did {person} write [to me]", "say to {person} {words}",
            "inform {person} that {words}", "is there mail [for me]", "write back {words}",
            "answer that {words}", "ask {person} if {words}", "show my inbox",
            "a note to {person} saying {words}",
        ),
        dev=("let {person} know {words}", "what did {person} write"),
        test=(
            "drop {person} a line that {words}", "could you say to {person} that {words}",
            "has {person} texted [me]", "answer {person} with {words}", "what's in my inbox",
        ),
    ),
    "navigate": Templates(
        train=(
            "navigate to {place}", "take me to {place}", "directions to {place}",
            "how do i get to {place}", "[please] start navigation to {place}", "drive to {place}",
            "how far is it to {place}", "find a route to {place}", "how is the traffic to {place}",
            "show me the way to {city}", "avoid the highway",
            "where is {place}", "i want to go to {place}", "i need to get to {place} by {clock}",
            "guide me to {place}", "what is the fastest way to {place}",
            "when will i arrive at {place}", "is there traffic on the way to {place}",
            "bring us to {city}", "we are going to {place}", "lead the way to {place}",
            "is this the right road to {city}",
        ),
        dev=("bring me to {place}", "how long does it take to drive to {place}"),
        test=(
            "which way is {place}", "i have to be at {place} by {clock} guide me there",
            "is there a faster road to {city}", "let's go to {place}", "what is the eta to {place}",
        ),
    ),
    "time": Templates(
        train=(
            "what time is it", "what's the time [in {city}]", "what day is it", "tell me the date",
            "what's today's date", "what is the time in {city}", "do you have the time",
            "which day of the week is it", "what month is it", "time [please]",
            "how many days (until|till) christmas",
            "is it {clock} (yet|already)", "tell me the hour in {city}",
            "which date do we have", "is it late", "what hour is it", "what year do we have",
            "is it night in {city} now", "what day do we have {day}", "is it still morning",
            "how long until {clock}",
        ),
        dev=("how late is it [in {city}]", "is it (monday|friday|sunday) today"),
        test=(
            "is it past {clock} [already]", "what's the clock say", "which year is it",
            "is it morning in {city}", "what date is it {day}",
        ),
    ),
    "smalltalk": Templates(
        train=(
            "hello", "hi [there]", "how are you [today]", "thank you [very much]", "thanks",
            "tell me a joke", "what's your name", "good (morning|night|evening)",
            "you are (great|funny|smart|useless)", "who made you", "i love you",
            "do you like {genre}", "how is it going", "you're welcome",
            "do you have (a name|friends)",
            "what can you do", "goodbye", "are you a (robot|person)", "sing something for me",
            "are you there", "do you have feelings", "where do you come from", "how do you feel",
            "what are you doing", "say something (funny|nice)", "well done", "you make me happy",
            "are you tired", "do you know {artist}", "what is your favorite (song|color|food)",
            "i am (bored|sad|happy)", "sorry", "can you hear me", "i missed you", "do you like me",
        ),
        dev=(
            "how was your (day|weekend|night)", "can you be my friend", "see you (later|soon)",
            "tell me (something|a story) about you",
        ),
        test=(
            "nice to meet you", "make me laugh", "do you ever sleep", "you did that well",
            "what do you think of {artist}", "are you listening", "how old are you",
            "(what's up|what's new) [with you]", "you sound (tired|happy|sad)",
            "where (are you from|do you live)", "do you (eat|dream|get bored)",
        ),
    ),
    "none": Templates(
        train=(
            "{person} is (late|here|asleep)", "the {room} is too small", "i never liked {city}",
            "who wrote the long road", "how tall is the eiffel tower", "yes", "no", "never mind",
            "and then we (ate|made) {food}", "translate {item} into french",
            "what is seven times six",
            "(i|we) bought {item} in {city}", "the {food} (was|is) cold",
            "{person} moved to {city}",
            "book a flight to {city}", "what does {item} cost", "my phone is (old|broken)",
            "the weather was bad so we left", "the music there was nice", "how do you cook {food}",
            "{person} called yesterday", "how old is {person}", "i saw {artist} {day}",
            "who is the mayor of {city}", "what is the capital of france",
            "the light was so nice in {city}", "get me a hotel in {city}", "what is {food} made of",
            "that was a long day", "he plays {genre}", "wait", "not now",
            "they say it's a good {room}", "my alarm clock is old", "he has no time",
            "we talked about {artist}", "how heavy is an elephant", "that song is about {city}",
            "they drove to {place}", "i lost my keys", "the timer was a present from {person}",
        ),
        dev=(
            "{person} said {words}", "he told me a story about {city}", "spell the word {genre}",
            "is {item} healthy",
        ),
        test=(
            "{person} had a call with {person}", "the lights of {city} are beautiful",
            "who is the president of france", "we heard {artist} live in {city}", "not you",
            "how many calories are in {food}", "order me a taxi",
            "that alarm woke the whole street",
            "she takes her time", "i think {person} likes {genre}",
        ),
    ),
}  # fmt: skip
"""What is meant, and how it is said."""
