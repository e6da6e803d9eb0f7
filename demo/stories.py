"""The demo's short stories: story arcs with a goal, an obstacle, some help and an ending, told in varying words."""

# ruff: noqa: SIM905 -- a line of words is easier to read and extend than a list of strings

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

import words

# One block per arc. First line: name | what a prompt may add | slots.
#   +  a sentence of training texts       -  a sentence of held-out texts       /  the story's next sentence
# {T} {t} the subject ("The little boat", "the little boat" or its name), {S} the same or a pronoun, {s} {o} {p}
# the pronouns it/it/its.
# {H} {h} the helper with "the", {a} the helper with "a", {i} {o2} {hp} he/him/his of the helper.
ARCS = """
lost | and a lost {k} | k=object g=spot
+ {T} had a {k}, and {s} loved it more than anything else.
+ The best thing that {t} had was a {k}.
+ Every day {t} played with {p} favourite {k}.
- There was a {k} that {t} loved very much.
/
+ One day the {k} was gone.
+ One morning {t} could not find the {k}.
+ But one evening the {k} was lost.
- One night the {k} was nowhere to be seen.
/
+ {T} looked under the bed, behind the door and {g2}, but it was not there.
+ {S} looked everywhere, but {s} could not find the {k}.
+ {S} searched all day and felt very sad.
- {S} looked and looked, but the {k} was not there.
/
+ Then {t} met {a}. "Why are you sad?" asked {h}. "I have lost my {k}," said {t}.
+ On the way {s} met {a}, who asked, "What are you looking for?" "My {k}," said {t}.
+ {A} heard {o} cry and came to help. "Let us look together," said {h}.
- {A} came by and said, "I will help you to find your {k}."
/
+ They walked a long way together, and at last they saw something {g}.
+ Together they looked {g}, and there was something bright.
+ {H} knew where to look. They went together, and they looked {g}.
- So they went on together, and they searched {g}.
/
+ It was the {k}! {T} jumped with joy.
+ There was the {k}! {T} was so happy that {s} began to sing.
+ And there it was, the lost {k}. {T} laughed and thanked {h}.
- It was the {k}, and {t} thanked {h} again and again.
/
+ From that day on {t} took good care of the {k}, and {h} was {p} best friend.
+ That night {t} slept well, with the {k} close by.
+ "A thing can be lost," said {h}, "but a friend is not." And {t} smiled.
- After that {t} never lost the {k} again.

wish | who wanted to {g} | g=goal
+ {T} had one big dream. {S} wanted to {g}.
+ More than anything else, {t} wanted to {g}.
+ Every night {t} dreamed the same dream. {S} wanted to {g}.
- There was only one thing that {t} wished for. {S} wanted to {g}.
/
+ But everyone said, "You are too small to {g}."
+ The others laughed. "You will never {g}," they said.
+ {S} tried and tried, but it did not work.
- Nobody believed that {t} could {g}.
/
+ {T} was sad, but {s} did not give up.
+ So {t} sat down and cried a little.
+ But {t} said, "I will try again tomorrow."
- But {t} did not stop trying.
/
+ One day {a} came by and heard about the dream. "I can help you," said {h}.
+ Then {s} met {a}. "I know how to {g}," said {h}. "Come with me."
+ {A} had watched {o} for a long time. "Do not be afraid," said {h}. "I will show you."
- {A} said, "If you really want to {g}, I will teach you."
/
+ They practised every day, from morning to evening.
+ Day after day they worked together, and every day it went a little better.
+ {H} was a good teacher, and {t} learned fast.
- For many weeks {h} and {t} practised together.
/
+ At last the great day came. {T} took a deep breath and began to {g}.
+ Then, one bright morning, it worked. {T} could {g}!
+ And one evening {t} could really {g}. Everyone looked up and cheered.
- In the end {t} was able to {g}, and nobody laughed any more.
/
+ "Thank you," said {t} to {h}. "Without you I would still be dreaming."
+ Now nobody laughed. They all wanted to {g} too.
+ {T} was the happiest of all, for the dream had come true.
- And so the dream of {t} came true.

fear | who was afraid of {f} | f=storyfear
+ {T} was afraid of {f}.
+ There was one thing that {t} did not like. {S} was afraid of {f}.
+ Nobody knew it, but {t} was afraid of {f}.
- {T} had a secret. {S} was afraid of {f}.
/
+ When the others went out to play, {t} stayed at home.
+ {S} hid in a corner and closed {p} eyes.
+ Every evening {s} shook with fear.
- {S} never dared to go far from home.
/
+ One night {t} heard a small cry outside. It was {a} who needed help.
+ One day {a} got lost and called for help.
+ One evening {a} came to the door. "Please help me," said {h}. "I cannot find the way home."
- One night {a} was in trouble and called out loudly.
/
+ {T} was still afraid, but {s} went out to help.
+ {T} thought of {f} and was afraid, but {s} took a deep breath and went.
+ "I am afraid too," said {t}, "but we can go together."
- {T} forgot the fear and ran out to help.
/
+ Step by step they went on, and {t} saw that {f} could not hurt {o}.
+ {S} held on to {h}, and together they found the way.
+ On the way they sang a song, and the fear became smaller and smaller.
- They walked side by side, and it was not so bad at all.
/
+ At last {h} was safe. "You are very brave," said {h}.
+ When they arrived, {h} said, "You are the bravest friend I know."
+ {H} came home safe and thanked {t}.
- In the end {h} was safe and happy.
/
+ Since that day {t} has not been afraid of {f}.
+ {T} smiled. To be brave is to be afraid and to go on.
+ And when {f} came again, {t} only smiled.
- From then on {t} was no longer afraid.

lonely | who had no friends |
+ {T} was often alone and had nobody to talk to.
+ Every day {t} watched the others play, but nobody asked {o} to join.
+ {T} wanted a friend more than anything else.
- {T} had no friends and was very lonely.
/
+ In the evening {s} looked at the stars and sighed.
+ "If only I had a friend," said {t}.
+ So {t} talked to the wind, but the wind did not answer.
- Each night {s} wished for somebody to talk to.
/
+ One rainy day {a} came along, wet and cold.
+ One morning {t} heard a sad voice. It was {a}.
+ Then, one day, {t} met {a} who was lonely too.
- One cold day there came {a} with nowhere to go.
/
+ "Come in and get warm," said {t}.
+ "Would you like to share my bread?" asked {t}.
+ {T} was shy, but {s} said, "Hello. Who are you?"
- {T} said, "You can stay here with me."
/
+ They talked and laughed until the sun went down.
+ {H} told funny stories, and {t} laughed for the first time in weeks.
+ They found out that they both liked to look at the stars.
- The two talked all night long.
/
+ The next day {h} came back, and the day after that too.
+ {H} did not go away again. "I like it here with you," said {h}.
+ From then on they did everything together.
- After that {h} came to visit every day.
/
+ And {t} was never lonely again.
+ Now {t} had a friend, and that was the best thing in the world.
+ So {t} and {h} became best friends.
- So {t} had found a true friend at last.

storm | and a big storm |
+ One evening dark clouds came over the hills, and the wind began to blow.
+ One night a great storm came.
+ One autumn day the sky turned black, and it began to rain.
- Late one evening a terrible storm began.
/
+ {T} heard the thunder and stayed close to the wall.
+ The wind was so strong that {t} could hardly stand.
+ Everyone ran home, but {t} stayed outside to see if anyone needed help.
- {T} looked out into the rain and listened.
/
+ Then {t} heard a voice. "Help!" cried {a}.
+ Through the rain {t} saw {a} in danger.
+ Suddenly {a} called for help in the dark.
- In the middle of the storm {s} saw {a} in great trouble.
/
+ {T} did not think for long. {S} went straight into the storm.
+ "Hold on!" called {t}. "I am coming!"
+ It was dangerous, but {t} wanted to help.
- {T} called, "Do not be afraid, I will help you!"
/
+ With all {p} strength {t} pulled {h} to a safe place.
+ {S} found a rope and threw it to {h}, who held on to it.
+ Step by step {t} led {h} out of the wind and the rain.
- Slowly {t} brought {h} back to a safe and dry place.
/
+ In the morning the sun came out, and the storm was over.
+ When the storm was over, they sat by a warm fire.
+ At last the wind stopped, and the stars came out.
- The next day the sky was blue again.
/
+ "You saved my life," said {h}. And {t} smiled.
+ Everyone heard what {t} had done, and they all cheered.
+ {H} never forgot what {t} had done that night.
- And {h} thanked {t} with all {hp} heart.

stranger | who helped a stranger |
+ One day {a} came along the road and looked tired.
+ One morning {t} met {a} who was hungry and cold.
+ It was winter when {a} knocked at the door.
- One snowy day {t} saw {a} at the side of the road.
/
+ "Nobody wants to help me," said {h}.
+ "I have walked for three days," said {h}. "May I rest here?"
+ All the others had sent {o2} away.
- "I have nothing to eat," said {h}.
/
+ {T} did not have much, but {s} shared everything.
+ {T} said, "Sit down with me. There is enough for two."
+ {T} gave {o2} some soup and a place by the fire.
- {T} shared {p} last piece of bread with {o2}.
/
+ The next morning {h} was gone, but on the table there was a small golden {k}.
+ Before {i} left, {h} gave {o} a little {k}. "It will help you one day," {i} said.
+ As thanks, {h} left a strange old {k} behind.
- When {h} went away, {i} left {o} a small {k}.
/
+ {T} did not know what it was for, but {s} kept it safe.
+ Many weeks went by, and {t} almost forgot it.
+ Then came a hard winter, and there was nothing left to eat.
- For a long time {t} did not think of it.
/
+ One night the {k} began to shine, and suddenly the table was full of food.
+ When {t} needed help, the {k} began to glow, and everything turned out well.
+ And then {h} came back, and this time {i} brought food for everyone.
- One evening the {k} began to shine like a star.
/
+ Who gives with a good heart gets more than gold.
+ {T} laughed and shared the food with all the neighbours.
+ And {t} knew that a kind deed is never lost.
- Then {t} understood that it is good to be kind.

race | and a big race | d=day
+ On {d} there was a big race, and {t} wanted to win it.
+ Every year there was a great race, and this time {t} took part.
+ "There will be a race on {d}," everyone said. {T} could hardly wait.
- Soon there was going to be a race, and {t} wanted to be the first.
/
+ {A} was the fastest of all and said, "You have no chance."
+ The fastest of all was {a}, who had won many times.
+ Nobody thought that {t} could beat {a}.
- {A} laughed and said, "I am faster than you."
/
+ The race began, and {h} was far ahead.
+ Ready, steady, go! {H} ran off like the wind, and {t} came last.
+ At first {t} was slow, and {h} was soon out of sight.
- When the race began, {h} was the first and {t} was the last.
/
+ But in the forest {h} fell into a deep hole and could not get out.
+ Then, at the river, {h} slipped and hurt {hp} leg.
+ Near the end {h} took the wrong way and got stuck in the mud.
- But half way {h} fell and could not go on.
/
+ {T} could have won now, but {s} stopped to help.
+ {T} saw it and stopped. "Take my hand," {s} said.
+ "Winning is not everything," thought {t}, and {s} went back to help.
- {T} did not run past. {S} stopped and helped {o2}.
/
+ So they came in together, both of them last.
+ Together they crossed the line, side by side.
+ They reached the end at the same time, and everyone cheered.
- They walked over the line together.
/
+ {H} said, "You are the real winner." And they shared the prize.
+ From that day on {t} and {h} were friends.
+ {T} did not get the cup, but {s} got a friend.
- And {t} was happier than any winner.

gift | and a {c} {k} | c=colour k=object
+ One day {t} found a {c} {k} in front of the door.
+ One morning there was a {c} {k} on the path.
+ On {p} way home {t} found a {c} {k} in the grass.
- One day a {c} {k} lay right in front of {t}.
/
+ {T} had never seen such a beautiful {k}.
+ It was very pretty, and {t} picked it up carefully.
+ "Whose {k} is this?" asked {t}.
- It shone in the sun, and {t} wondered where it came from.
/
+ At night the {k} began to glow, and a soft voice came out of it.
+ {T} wanted to keep it, but {s} knew that somebody must miss it.
+ When {t} touched it, it began to sing.
- That night {t} could not sleep and thought of the {k}.
/
+ So {t} asked everyone, and at last {s} met {a}.
+ The next day {a} came along the road and looked for something.
+ Then {t} heard {a} cry.
- In the morning {t} saw {a} who looked very sad.
/
+ "I have lost my {k}," said {h}. "It was a gift from my mother."
+ "That is my {k}!" said {h}. "I have looked for it for days."
+ "Have you seen a {c} {k}?" asked {h}.
- "Without my {k} I cannot go home," said {h}.
/
+ {T} was a little sad, but {s} gave the {k} back.
+ {T} smiled and gave it to {o2} at once.
+ "Here it is," said {t}. "I kept it safe for you."
- {T} did not wait and gave back the {k}.
/
+ {H} was so glad that they became friends, and often they looked at the {c} {k} together.
+ The next day {h} came back with a second {c} {k}. "This one is for you," {i} said.
+ And {h} said, "An honest friend is worth more than a {k}."
- So {t} lost a {k} and won a friend.

broken | and the broken {k} | k=object
+ Every day {t} used an old {k} that once belonged to {p} grandmother.
+ {T} had an old {k}, and it was very dear to {o}.
+ At home {t} had a beautiful old {k}.
- The old {k} was the dearest thing that {t} had.
/
+ One day it fell down and broke.
+ But one morning the {k} was broken.
+ Then, on a windy day, the {k} fell and broke into two pieces.
- One evening it broke.
/
+ "Nobody can repair it," said the neighbours.
+ {T} tried to repair it, but {s} could not.
+ {T} was sad and put the pieces into a box.
- {T} did not know what to do.
/
+ Then {s} heard of {a} who could repair anything.
+ {A} came by and saw the pieces. "Let me try," said {h}.
+ So {t} took the pieces to {a}.
- But there was {a} who knew a lot about such things.
/
+ They worked together all night. {T} held the lamp, and {h} used a tiny hammer.
+ {H} looked at it for a long time, and then {i} began to work.
+ First they cleaned every piece, and then they put it together.
- All day long {h} and {t} worked on the {k}.
/
+ In the morning the {k} was as good as new.
+ At last it was done, and the {k} looked even better than before.
+ When the sun came up, the {k} was whole again.
- By the evening the {k} was whole.
/
+ "How can I thank you?" asked {t}. "Be my friend," said {h}.
+ {T} thanked {h} and learned to repair things too.
+ Now {t} repairs the broken things of all the neighbours.
- And since then {t} has known that broken things can be made whole.

sleep | who could not sleep |
+ One night {t} could not sleep.
+ It was late, but {t} was still awake.
+ The moon was high in the sky, and {t} could not sleep.
- Night after night {t} lay awake.
/
+ {S} turned to the left and to the right, but it did not help.
+ {S} counted the stars, but there were too many.
+ {S} tried to count sheep, but they ran away.
- {S} closed {p} eyes, but sleep did not come.
/
+ So {t} went outside and met {a}.
+ Then {a} looked in at the window.
+ Outside, {a} was awake too.
- There was a soft noise, and {t} saw {a}.
/
+ "Why are you awake?" asked {h}. "I think too much," said {t}.
+ "I cannot sleep," said {t}. "Then come with me," said {h}.
+ {H} said, "I know a song that helps."
- "What keeps you awake?" asked {h}.
/
+ They sat down together, and {h} told a long story about the sea.
+ {H} sang quietly about the moon and the wind.
+ They listened to the river and watched the clouds go by.
- The two sat side by side, and {h} sang softly.
/
+ Little by little {t} became tired.
+ {T} listened, and {p} eyes became heavy.
+ The night was still, and {t} felt calm.
- Soon {t} felt warm and tired.
/
+ When the song was over, {t} was fast asleep.
+ "Good night," said {h}, but {t} was already asleep.
+ And {t} slept until the sun was high in the sky.
- At the end of it {t} slept deeply.

treasure | and a hidden treasure | p1=hidingplace
+ One day {t} found an old map.
+ In an old book {t} found a map with a red cross on it.
+ A bottle came down the river, and in it {t} found a map.
- By chance {t} came upon an old map.
/
+ "There is a treasure {p1}!" said {t}.
+ The map showed a treasure {p1}.
+ On it was written, "Look {p1}."
- It said that there was a treasure {p1}.
/
+ {T} asked {a} to come along, and off they went.
+ On the way {s} met {a}, who wanted to come too.
+ "I will come with you," said {a}.
- {A} went with {o}.
/
+ The way was long. They crossed a river and climbed a steep hill.
+ They walked for three days and slept under the stars.
+ They got lost twice, and it began to rain, but they did not turn back.
- It was a long way, over hills and through the woods.
/
+ At last they came to the place and began to dig.
+ Then they stood in front of an old wooden box.
+ There it was, a box covered with moss.
- In the end they found an old box.
/
+ They opened it, but there was no gold in it. There were only seeds.
+ Inside there was a note. "The treasure is the friend who came with you," it said.
+ It was full of golden coins, and they shared them.
- When they opened it, they could not believe their eyes.
/
+ {T} laughed. It had been the best journey of all.
+ They went home happy, and {t} told the story for many years.
+ So {t} and {h} had found something better than gold.
- And {t} said, "The best of all was to go there with you."

sharing | and the hungry neighbours | f=food
+ It was a hard winter, and there was little to eat.
+ One year there was no rain, and everyone was hungry.
+ One day the food was nearly gone.
- That year there was not enough to eat.
/
+ {T} had only a little {f} left.
+ All that {t} had was some {f}.
+ {T} had hidden some {f} for hard days.
- In {p} bag {t} had the last of the {f}.
/
+ Then {a} came and asked, "May I have a little?"
+ {A} came by. "I have not eaten for two days," said {h}.
+ At the door stood {a}, thin and tired.
- There came {a} who was hungry.
/
+ {T} thought for a moment. Then {s} shared the {f}.
+ "There is not much," said {t}, "but we can share it."
+ {T} gave {h} half of it.
- {T} smiled and gave half of the {f} away.
/
+ When the others saw this, they brought what they had too.
+ Soon more and more neighbours came, and each brought something.
+ {H} told everyone, and they all came with something to share.
- The others saw it and began to share as well.
/
+ They put it all into one big pot, and there was enough for all.
+ In the end the table was full, and everyone ate together.
+ It became a great feast, the best in years.
- So there was a feast for all of them.
/
+ {T} looked around and was happy. Shared food tastes best.
+ "Who shares is never poor," said {h}.
+ Nobody was hungry that winter, thanks to {t}.
- And {t} was proud and glad.

journey | who went on a long journey | g=destination
+ One day {t} wanted to see the world.
+ {T} had never been far from home.
+ "What is there behind the hills?" {t} often asked.
- For a long time {t} had wanted to go away.
/
+ So {s} set out early in the morning to go to {g}.
+ One spring morning {s} said goodbye and went off to {g}.
+ {S} took some bread and a blanket and started on the way to {g}.
- {S} packed {p} things and set out for {g}.
/
+ On the second day {t} came to a wide river and could not cross it.
+ But the way was long, and {t} was soon tired.
+ In the deep forest {t} lost the way.
- After a while {t} did not know where to go.
/
+ There {s} met {a}. "Come with me, I know the way," said {h}.
+ Luckily {a} came by and offered to help.
+ "Where are you going?" asked {a}. "To {g}," said {t}.
- By the road sat {a} who knew the way.
/
+ They went on together and told each other stories.
+ Together it was easy, and the time flew by.
+ {H} showed {o} the way over the hills.
- Side by side they travelled on.
/
+ At last they stood before {g}. It was more beautiful than in any dream.
+ After many days they reached {g}, and {t} was full of wonder.
+ Then {t} saw {g} for the first time and could not say a word.
- One evening they arrived at {g}.
/
+ {T} stayed for a while, and then {s} went home with many stories to tell.
+ "The world is big," said {t}, "but it is good to have a home."
+ And when {t} came home, everyone wanted to hear about {g}.
- In the end {t} came home and was glad.
"""

PLACE_ARCS = """
drought | and the dry well | h=person
+ In {t} there was a well with sweet water.
+ The people of {t} had always been happy.
+ Every morning the children of {t} played by the old well.
- There was once plenty of water in {t}.
/
+ But one summer there was no rain, and the well dried up.
+ Then came a hot year, and there was no more water in {t}.
+ One day the well was empty.
- But then the water was gone.
/
+ The people of {t} did not know what to do.
+ "We must leave {t}," said some of the people.
+ The flowers died, and everyone was sad.
- All the people were afraid that they would have to leave.
/
+ Only a girl named {h} did not give up. "Somewhere there is water," she said.
+ Then a girl called {h} had an idea. "Let us dig a new well," she said.
+ A young girl, {h}, went into the hills to look for water.
- But {h}, a clever girl, wanted to help.
/
+ Day after day {h} dug, and soon all the people of {t} came to help.
+ At first nobody helped {h}, but then more and more people came.
+ {h} followed a bird to a rock, and there she heard the sound of water.
- {h} worked from morning to evening, and the others came to help.
/
+ On the seventh day the water came, clear and cold.
+ At last there was water, and it ran down to {t}.
+ Then the water came up, and everyone danced.
- After many days they found water.
/
+ Since then {t} has been green again, and the new well has the name of {h}.
+ And {t} was happy again.
+ Now there are flowers everywhere in {t}, and nobody has forgotten {h}.
- So {t} was saved by {h}.

dark | and the lost light | h=person
+ At night a bright light shone over {t}.
+ {T} was known for its bright light.
+ Every evening a warm light was lit in {t}.
- There was a light in {t} that everyone loved.
/
+ But one night the light went out.
+ One winter the light did not shine any more.
+ Then the wind blew the light out.
- But one evening it was dark.
/
+ It was so dark in {t} that nobody could see the way.
+ The people were afraid and stayed at home.
+ Everyone in {t} was sad in the dark.
- Nobody knew how to light it again.
/
+ A boy named {h} said, "I will bring the light back."
+ Then a boy called {h} took a small lamp and went out.
+ Only {h}, a small boy, was not afraid.
- But a boy with the name {h} wanted to try.
/
+ {h} climbed up the many steps, higher and higher.
+ {h} asked each house for a little oil, and everyone gave what they had.
+ {h} walked through the night and asked the stars for help.
- All night long {h} worked.
/
+ At midnight a small flame began to shine, and it grew and grew.
+ Then, suddenly, the light was there again.
+ At last {h} lit the lamp, and {t} was bright.
- In the end the light came back.
/
+ The people came out of their houses and cheered for {h}.
+ Since then the light has never gone out in {t}.
+ And all was well in {t}.
- So {t} had its light again.

newcomer | and the newcomer | h=person
+ {T} was quiet, and nothing ever happened there.
+ In {t} everyone knew everyone.
+ Nobody new had come to {t} for a long time.
- Life in {t} was always the same.
/
+ One day a woman named {h} came with a cart full of strange things.
+ Then, one morning, {h} arrived, a woman with a big hat.
+ But one spring a traveller called {h} came to {t}.
- One evening there came a woman with the name {h}.
/
+ The people of {t} looked at her and did not say a word.
+ "What does she want here?" asked the people.
+ At first nobody spoke to her.
- Nobody in {t} wanted to talk to her.
/
+ But {h} smiled. She sat down and began to play a song.
+ {h} was not angry. She began to bake a big cake.
+ {h} painted her door yellow and put flowers at the window.
- But {h} was friendly to everyone.
/
+ First came the children, and then the old people came too.
+ One after the other the people came closer.
+ A small boy said hello, and then another one.
- Slowly the people came to her.
/
+ In the evening all of {t} was laughing and dancing.
+ Soon everyone wanted to help {h}.
+ They talked until late in the night.
- By the evening they were all friends.
/
+ And {h} stayed in {t} for ever.
+ Since then a stranger has always been welcome in {t}.
+ And {t} was never dull again.
- So {t} had become a friendlier place.
"""

OPENINGS = [
    "Once upon a time there was {A} {home}.",
    "Once there was {A} who lived {home}.",
    "Long ago, {A} lived {home}.",
    "There once was {A} who lived {home}.",
    "{A} lived {home}.",
    "In a land far away there was {A} who lived {home}.",
    "Not so long ago there lived {A} {home}.",
]
HELD_OPENINGS = ["Many years ago there was {A} who lived {home}.", "Once {A} lived {home}."]
PLACE_OPENINGS = [
    "Once upon a time there was {A} {site}.",
    "Far away there was {A} {site}.",
    "Long ago there was {A} {site}.",
    "There once was {A} {site}.",
]
HELD_PLACE_OPENINGS = ["Many years ago there was {A} {site}."]
HOMES = (
    "by the sea,in a small village,near a dark forest,in a green valley,on a hill,at the edge of the forest,"
    "by a wide river,in an old town,near the harbour,on a little island,behind the mill,in a quiet garden,"
    "next to a lake,at the foot of a mountain,near an old castle,in a house with a red door,"
    "at the end of a long road,beside a stream"
).split(",")
SITES = (
    "by the sea,in the hills,at the edge of the forest,in a green valley,by a wide river,"
    "at the foot of a mountain,near a lake,at the end of a long road,between two rivers,high above the sea"
).split(",")
GOALS = (
    "fly,sing,dance,see the sea,swim,travel to the moon,touch the stars,paint,climb the highest mountain,read,"
    "play the violin,sail across the sea,find a friend,learn to whistle,see the snow,make people laugh,"
    "become a king,run faster than the wind,jump over the moon,see the world,bake a cake,build a house,"
    "ride a horse,play the drum,tell stories,write a song,catch a star,shine in the night,swim across the lake,"
    "cook"
).split(",")
STORY_FEARS = (
    "the dark,thunder,the deep water,high places,the forest,the wind,loud noises,the big waves,the night,"
    "the snow,strangers,the storm,the old tower,shadows,the cold"
).split(",")
HIDING_PLACES = (
    "under the old oak,behind the waterfall,on the island,in the dark cave,at the foot of the mountain,"
    "under the old bridge,behind the mill,in the old tower,at the end of the rainbow,under the big stone"
).split(",")
DESTINATIONS = (
    "the sea,the big city,the high mountains,the golden castle,the north,the end of the world,"
    "the island of birds,the great lake,the white tower,the land of snow,the southern hills,the old lighthouse"
).split(",")


@dataclass
class Arc:
    """A story's course: what a prompt may say of it, its slots, and its sentences."""

    name: str
    hint: str
    slots: dict[str, str]
    stages: list[list[str]] = field(default_factory=lambda: [[]])
    held_stages: list[list[str]] = field(default_factory=lambda: [[]])


def parse_arcs(text: str) -> list[Arc]:
    """Read the blocks above."""
    arcs = []
    for block in text.strip().split("\n\n"):
        header, *lines = block.split("\n")
        name, hint, slots = (cell.strip() for cell in header.split("|"))
        arc = Arc(name, hint, dict(pair.split("=") for pair in slots.split()))
        for line in lines:
            if line[0] == "/":
                arc.stages.append([])
                arc.held_stages.append([])
            else:
                (arc.stages if line[0] == "+" else arc.held_stages)[-1].append(line[1:].strip())
        arcs.append(arc)
    return arcs


STORY_ARCS = parse_arcs(ARCS)
PLACE_STORY_ARCS = parse_arcs(PLACE_ARCS)
OBJECT_ARCS = ("lost", "gift", "broken")

PROMPTS = [
    "Tell me a story about {x}.",
    "Tell me a short story about {x}.",
    "Write a short story about {x}.",
    "Write a story about {x}.",
    "Please tell me a story about {x}.",
    "Tell a story about {x}.",
    "Can you tell me a story about {x}?",
    "I would like to hear a story about {x}.",
    "A story about {x}, please.",
    "Make up a story about {x}.",
    "Please write a short story about {x}.",
    "Story: {x}",
    "Tell me about {x} in a story.",
    "Invent a short story about {x}.",
    "Could you write a story about {x}?",
    "tell me a story about {x}",
    "write a short story about {x}",
    "Give me a short story about {x}.",
]
HELD_PROMPTS = ["I want to read a short story about {x}.", "Please make up a short story about {x}."]


@dataclass(frozen=True)
class Character:
    """Who a story is about, or who helps: how it is introduced, named, and referred to."""

    introduced: str  # "a brave little boat named Pip"
    prompted: str  # "a brave little boat"
    called: list[str]  # ["the little boat", "the boat", "Pip"]
    pronouns: tuple[str, str, str]


def _character(rng: random.Random, held_out: bool, *, person: float = 0.0, helper: bool = False) -> Character:
    if rng.random() < person:
        female = rng.random() < 0.5
        name = words.person_name(rng, held_out, female)
        pronouns = ("she", "her", "her") if female else ("he", "him", "his")
        kind = rng.choice(("girl", "girl", "woman") if female else ("boy", "boy", "man"))
        adjective = rng.choice(words.STORY_ADJECTIVES[:22])
        named = rng.choice(
            (f"a {adjective} {kind} named {name}", f"a {kind} called {name}", f"a {adjective} {kind} called {name}")
        )
        prompted = name if rng.random() < 0.7 else named
        return Character(named, prompted, [name], pronouns)
    nouns = rng.choice((words.STORY_ANIMALS, words.STORY_ANIMALS, words.STORY_THINGS, words.STORY_PEOPLE))
    if helper:
        nouns = rng.choice((words.STORY_ANIMALS, words.STORY_ANIMALS, words.STORY_PEOPLE))
    noun = rng.choice(words.part(nouns, held_out))
    if not helper and rng.random() < 0.06:
        noun = words.made_up_word(rng)
    count = rng.choice((0, 1, 1, 1, 2, 2) if not helper else (0, 1, 1))
    adjectives = rng.sample(words.STORY_ADJECTIVES, count)
    plain = " ".join([*adjectives, noun])
    called = [f"the {noun}", f"the {' '.join([*adjectives[-1:], noun])}"]
    pronouns = rng.choice((("he", "him", "his"), ("she", "her", "her")))
    if nouns is words.STORY_THINGS:
        pronouns = ("it", "it", "its")
    elif noun in ("girl", "queen", "princess", "witch", "grandmother"):
        pronouns = ("she", "her", "her")
    elif noun in ("boy", "king", "prince", "wizard", "grandfather", "fisherman"):
        pronouns = ("he", "him", "his")
    introduced = f"a {plain}"
    prompted = rng.choice((introduced, introduced, introduced, f"the {plain}", f"a {noun}" if count else introduced))
    if prompted == f"a {noun}" and rng.random() < 0.5:
        called = called[:1]
    if not helper and rng.random() < 0.2:
        name = words.pet_name(rng, held_out)
        called = [*called, name, name]
        introduced += rng.choice((" named ", " called ")) + name
        if rng.random() < 0.7:
            prompted = introduced
    return Character(introduced, prompted, called, pronouns)


def _with_article(text: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni|se))", r"\1n ", text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def slot_value(rng: random.Random, held_out: bool, kind: str) -> str:
    """Draw what a story arc's slot holds."""
    listed = {
        "object": words.OBJECTS,
        "spot": words.SPOTS,
        "goal": GOALS,
        "storyfear": STORY_FEARS,
        "day": words.DAYS,
        "colour": words.COLOURS,
        "hidingplace": HIDING_PLACES,
        "food": words.FOODS,
        "destination": DESTINATIONS,
    }
    if kind == "person":
        return words.person_name(rng, held_out, rng.random() < 0.5)
    return rng.choice(listed[kind])


def _prompted_word(character: Character) -> str:
    """Return the word for a character that its prompt holds: the name, or else the noun."""
    words_for = [called.split()[-1] for called in reversed(character.called)]
    return next((word for word in words_for if word in character.prompted.split()), words_for[-1])


def write_story(rng: random.Random, held_out: bool) -> tuple[str, str, list[str]]:
    """Write a story: the prompt, the story, and the words that a story on this subject cannot do without."""
    if rng.random() < 0.1:
        return _write_place_story(rng, held_out)
    hero = _character(rng, held_out, person=0.35)
    helper = _character(rng, held_out, person=0.25, helper=True)
    arc = rng.choice(STORY_ARCS)
    slots = {name: slot_value(rng, held_out, kind) for name, kind in arc.slots.items()}
    slots.setdefault("k", rng.choice(words.OBJECTS))
    slots["g2"] = slot_value(rng, held_out, "spot")
    subject = hero.prompted
    keys = [_prompted_word(hero)]
    chance = rng.random()
    if arc.hint and (chance < 0.45 or (arc.name in OBJECT_ARCS and chance < 0.6)):
        hint = arc.hint
        if arc.name in OBJECT_ARCS:
            hint = rng.choice((hint, "and a {k}" if arc.name != "gift" else hint, hint.replace("and a", "and the")))
            keys.append(slots["k"])
        elif hint.startswith("who was") and rng.random() < 0.5:
            hint = hint.replace("who was", "who is")
        elif hint.startswith("who wanted") and rng.random() < 0.5:
            hint = hint.replace("who wanted", "who wants")
        subject += " " + hint.format(**slots)
    elif chance < 0.65:
        subject += " and " + helper.prompted
        keys.append(_prompted_word(helper))
    elif chance < 0.72 and not subject.startswith("the "):
        subject += " " + rng.choice(HOMES)
    prompt = _with_article(rng.choice(HELD_PROMPTS if held_out else PROMPTS).format(x=subject))

    he, him, his = hero.pronouns
    sentences = []
    home = rng.choice(HOMES)
    opening = rng.choice(HELD_OPENINGS if held_out else OPENINGS)
    sentences.append(_capital(opening.format(A=hero.introduced, home=home)))
    helper_known = False
    for stage, held_stage in zip(arc.stages, arc.held_stages, strict=True):
        template = rng.choice(held_stage if held_out and held_stage else stage)
        called, helper_called = rng.choice(hero.called), rng.choice(helper.called)
        introduced = helper.introduced
        pronoun_fits = rng.random() < 0.5 and "{T}" not in template and "{t}" not in template
        text = (
            template.format(
                **slots,
                T=_capital(called),
                t=called,
                S=_capital(he) if pronoun_fits or "{t}" in template.lower() else _capital(called),
                s=he,
                o=him,
                p=his,
                A=_capital(introduced),
                a=introduced,
                H=_capital(helper_called),
                h=helper_called,
                i=helper.pronouns[0],
                o2=helper.pronouns[1],
                hp=helper.pronouns[2],
            )
            if "h" not in arc.slots
            else ""
        )
        helper_known = helper_known or "{a}" in template or "{A}" in template
        sentences.append(text)
    return prompt, _with_article(" ".join(sentences)), keys


def _write_place_story(rng: random.Random, held_out: bool) -> tuple[str, str, list[str]]:
    noun = rng.choice(words.part(words.STORY_PLACES, held_out, 6) or words.STORY_PLACES)
    adjectives = rng.sample(
        ["old", "little", "small", "quiet", "sleepy", "lonely", "forgotten", "green", "happy"], rng.choice((0, 1, 1, 2))
    )
    plain = " ".join([*adjectives, noun])
    introduced, called = f"a {plain}", [f"the {noun}", f"the {' '.join([*adjectives[-1:], noun])}"]
    keys = [noun]
    if rng.random() < 0.4:
        name = words.place_name(rng, held_out)
        introduced += f" called {name}"
        called.append(name)
        keys = [name]
    arc = rng.choice(PLACE_STORY_ARCS)
    female = arc.name != "dark"
    slots = {"h": words.person_name(rng, held_out, female)}
    subject = introduced
    if keys[0] != noun and rng.random() < 0.3:
        subject = keys[0]
    if rng.random() < 0.35:
        subject += " " + arc.hint
    elif rng.random() < 0.3:
        subject += " " + rng.choice(SITES)
    prompt = rng.choice(HELD_PROMPTS if held_out else PROMPTS).format(x=subject)
    opening = rng.choice(HELD_PLACE_OPENINGS if held_out else PLACE_OPENINGS)
    sentences = [opening.format(A=introduced, site=rng.choice(SITES))]
    for stage, held_stage in zip(arc.stages, arc.held_stages, strict=True):
        place = rng.choice(called)
        sentences.append(
            rng.choice(held_stage if held_out and held_stage else stage).format(t=place, T=_capital(place), **slots)
        )
    return _with_article(prompt), _with_article(" ".join(sentences)), keys
