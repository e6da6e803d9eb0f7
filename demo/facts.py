"""What the demo passages say: facts and small events, how each can be told, asked about, answered and summed up."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Ask:
    """One thing to ask of a fact: questions, the answer, and how to say that the passage is silent about it."""

    unsaid: str
    answer: str
    about_subject: bool  # the question names the subject; otherwise it asks who the subject is
    questions: list[str] = field(default_factory=list)
    held_questions: list[str] = field(default_factory=list)


@dataclass
class Relation:
    """A fact (one stage) or an event (several stages, one sentence each, told in order)."""

    name: str
    kind: str  # "person", "town" or "shop": what the subject is
    slots: dict[str, str]
    stages: list[list[str]] = field(default_factory=lambda: [[]])
    held_stages: list[list[str]] = field(default_factory=lambda: [[]])
    briefs: list[str] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    yes_no: list[str] = field(default_factory=list)


# One block per relation. First line: name | kind of subject | slots.
#   +  a sentence of training texts       -  a sentence of held-out texts       /  the event's next sentence
#   b  the same as a verb phrase          s  a summary of the event
#   a  what is unsaid => answer           w  the same for a question after the subject
#   ?  a question of training texts       !  a question of held-out texts       y  a question for yes or no
# {N} {n} subject (a name or a pronoun), {Ns} {ns} possessive, {X} always the name, {s} {o} {p} she/her/her.
FACTS = """
lives | person | v=place
+ {N} lives in {v}
+ {Ns} home is in {v}
+ {N} has lived in {v} for {years} years
+ {Ns} house is in {v}
+ {N} lives in a {size} house in {v}
+ {N} lives in {v} with {p} family
+ The town where {n} lives is called {v}
+ {N} lives alone in {v}
+ The {size} house of {X} is in {v}
+ {N} moved to {v} long ago and still lives there
+ {N} lives in {v}, and {p} friends live there too
+ People who live in {v} know {o} well, for {n} lives there
+ {N} lives in {v} because {p} parents live there
- {N} has a {size} home in {v}
- {N} and {p} family live in {v}
- For {years} years {n} has lived in {v}
b lives in {v}
a where {n} lives => {n} lives in {v}
? Where does {n} live
? In which town does {n} live
? Where is the home of {n}
? What is the name of the town where {n} lives
? Which town does {n} live in
? Where is {n}'s house
? What town is {n}'s home in
? In which place does {n} live
? At what place is {n}'s home
? In what place does {n} live
! At which place does {n} live
! Can you tell me where {n} lives
w who lives in {v} => {n} lives in {v}
? Who lives in {v}
? Whose home is in {v}
? Which person lives in {v}
! Who is it that lives in {v}
y Does {n} live in {v}

born | person | v=place
+ {N} was born in {v}
+ {Ns} birthplace is {v}
+ {N} was born in the town of {v}
+ {N} comes from {v}
+ {N} was born on a cold {day} in {v}
+ The town where {n} was born is {v}
+ {N} was born in {v}, which is far away
+ Far away in {v}, {n} was born
+ {N} came from far away: {s} was born in {v}
- {v} is the town where {n} was born
- {N} was born far away, in {v}
b was born in {v}
a where {n} was born => {n} was born in {v}
? Where was {n} born
? In which town was {n} born
? What is {n}'s birthplace
? Where does {n} come from
? At what place was {n} born
? At which place was {n} born
! In what place was {n} born
! Which town was {n} born in
w who was born in {v} => {n} was born in {v}
? Who was born in {v}
? Who comes from {v}
? Who is it that was born in {v}
! Which person was born in {v}
y Was {n} born in {v}

job | person | v=job
+ {N} is a {v}
+ {N} works as a {v}
+ {N} earns {p} living as a {v}
+ {N} has been a {v} for {years} years
+ {Ns} job is being a {v}
+ {N} became a {v} like {p} father
+ By trade {n} is a {v}
+ {N} is a good {v}
+ {N} has worked as a {v} for many years
+ Since {p} school days {n} wanted to be a {v}, and now {s} is one
+ Everyone says that {n} is a good {v}
+ It is known to everyone that {n} is a {v}
+ {N} works as a {v}, as everyone knows
- {N} has worked as a {v} since {p} school days
- For {years} years {n} has been a {v}
- Everyone knows that {n} is a {v}
b works as a {v}
a what {n}'s job is => {n} is a {v}
? What is {n}'s job
? What does {n} do for a living
? What work does {n} do
? What is the job of {n}
? What does {n} work as
? Which kind of job does {n} have
? What kind of job is {n}'s
! What kind of work does {n} do
! What job does {n} have
w who is a {v} => {n} is a {v}
? Who is a {v}
? Who works as a {v}
? Which person is a {v}
? Whose job is that of a {v}
? Who has a job as a {v}
! Who has the job of a {v}
y Is {n} a {v}

workplace | person | v=workplace
+ {N} works at the {v}
+ Every morning {n} goes to work at the {v}
+ {N} has a job at the {v}
+ {N} works at the {v} six days a week
+ During the day {n} works at the {v}
+ {N} found work at the {v}
+ {N} spends {p} days at the {v}, where {s} works
+ From morning to evening {n} works at the {v}
+ {N} works all day, from early morning on, at the {v}
+ {N} spends six days a week at work at the {v}
- {N} spends the day at work at the {v}
- At the {v}, {n} works from morning to evening
b works at the {v}
a where {n} works => {n} works at the {v}
? Where does {n} work
? At which place does {n} work
? Where does {n} go to work
? What is {n}'s place of work
? In which place does {n} work
? Where is the job of {n}
? In what place does {n} work
! At what place is {n}'s work
! Where is {n}'s job
w who works at the {v} => {n} works at the {v}
? Who works at the {v}
? Who has a job at the {v}
? Which person works at the {v}
! Who is it that works at the {v}
y Does {n} work at the {v}

pet | person | c=colour k=pet q=petname
+ {N} has a {c} {k} called {q}
+ {N} owns a {c} {k} named {q}
+ {Ns} {c} {k} is called {q}
+ {N} keeps a {c} {k}, and its name is {q}
+ At home {n} has a {c} {k} whose name is {q}
+ {N} looks after a {c} {k} named {q}
+ {q} is the name of {ns} {c} {k}
+ {N} loves {p} {c} {k}, {q}
+ {N} has a {c} {k}, and {s} calls it {q}
+ Everyone calls {ns} {c} {k} by its name, {q}
+ A {c} {k} lives with {o}, and its name is {q}
+ With {o} lives a {c} {k} called {q}
+ {q} is a {c} {k} that lives with {X}
- {N} has a {c} {k}, and everyone calls it {q}
- A {c} {k} named {q} lives with {o}
- The name of {ns} {c} {k} is {q}
b has a {c} {k} called {q}
a what {n}'s {k} is called => {n}'s {k} is called {q}
? What is {n}'s {k} called
? What is the name of {n}'s {k}
? What did {n} call the {k}
? Which name does {n}'s {k} have
! How is {n}'s {k} called
! What name does {n}'s {k} have
a what pet {n} has => {n} has a {c} {k} called {q}
? What pet does {n} have
? What animal does {n} have
? Which animal does {n} own
? What kind of pet does {n} have
? Which animal does {n} keep at home
? What animal does {n} own
! What animal does {n} keep
a what colour {n}'s {k} is => {n}'s {k} is {c}
? What colour is {n}'s {k}
? What is the colour of {n}'s {k}
? Which colour does {n}'s {k} have
! Which colour is {n}'s {k}
w who has a {k} => {n} has a {k}
? Who has a {k}
? Who owns a {k}
? Whose pet is a {k}
? Who is it that has a {k}
! Which person has a {k}
w who {q} belongs to => {q} belongs to {n}
? Who owns {q}
? Whose pet is {q}
? Who does {q} belong to
? Which person owns {q}
! Who is it that owns {q}
y Does {n} have a {k}

colour | person | v=colour
+ {Ns} favourite colour is {v}
+ {N} likes {v} more than any other colour
+ The colour {n} likes best is {v}
+ {N} thinks that {v} is the best colour
+ {N} always wears {v}, {p} favourite colour
+ Of all the colours {v} is the one that {n} likes best
+ {N} says that {s} likes {v} best
+ {N} often says that no colour is as good as {v}
- Of all colours {n} likes {v} best
- {N} says that {p} favourite colour is {v}
b likes the colour {v} best
a what {n}'s favourite colour is => {n}'s favourite colour is {v}
? What is {n}'s favourite colour
? Which colour does {n} like best
? What colour does {n} like most
! What colour is {n}'s favourite
w whose favourite colour is {v} => {n}'s favourite colour is {v}
? Whose favourite colour is {v}
? Who likes {v} best
? Who is it that likes {v} best
! Which person likes {v} best
y Is {n}'s favourite colour {v}

food | person | v=food
+ {Ns} favourite food is {v}
+ {N} likes {v} more than any other food
+ {N} loves to eat {v}
+ {N} eats {v} every day
+ For dinner {n} likes {v} best
+ The food {n} likes best is {v}
+ Most of all {n} loves {v}
+ {N} likes {v} most of all
+ Every day {n} could eat {v} and nothing else
+ {N} could not live without {v}, {p} favourite food
- Most of all {n} likes to eat {v}
- {N} could eat {v} every day
b likes to eat {v}
a what {n} likes to eat => {n} likes to eat {v}
? What does {n} like to eat
? What is {n}'s favourite food
? Which food does {n} like best
? What food does {n} love
? Which is the favourite food of {n}
! What does {n} love to eat
! What is the favourite food of {n}
w who likes to eat {v} => {n} likes to eat {v}
? Who likes to eat {v}
? Whose favourite food is {v}
? Who loves {v}
? Who likes to eat {v} most
! Who loves to eat {v}
y Does {n} like to eat {v}

hobby | person | v=hobby
+ {Ns} hobby is {v}
+ In {p} free time {n} enjoys {v}
+ {N} loves {v}
+ On weekends {n} enjoys {v}
+ {N} is very fond of {v}
+ After work {n} likes {v}
+ {N} enjoys {v} on {day}s
+ {N} has always loved {v}
+ Since {s} was a child {n} has loved {v}
+ {N} has enjoyed {v} since {s} was young
+ When {n} has time, {s} enjoys {v}
+ When there is nothing else to do, {n} enjoys {v}
- {N} has loved {v} since {s} was young
- When there is time, {n} enjoys {v}
b enjoys {v}
a what {n}'s hobby is => {n} enjoys {v}
? What is {n}'s hobby
? What does {n} enjoy
? What does {n} like to do
? What does {n} do in {p} free time
? What does {n} love doing
? Which hobby does {n} enjoy
! What does {n} love to do
! Which hobby does {n} have
w who enjoys {v} => {n} enjoys {v}
? Who enjoys {v}
? Who likes {v}
? Whose hobby is {v}
? Which person enjoys {v}
! Who is it that enjoys {v}
y Does {n} enjoy {v}

age | person | v=number
+ {N} is {v} years old
+ {N} turned {v} last {day}
+ {N} was {v} on {p} last birthday
+ At the age of {v}, {n} is still curious
+ Last {season} {n} turned {v}
+ {N} turned {v} last week
+ {N} has turned {v} this year
+ {N} just had a birthday and is {v} years old
+ Now {n} is {v} years old
- {N} has just turned {v}
- {N} is now {v} years old
b is {v} years old
a how old {n} is => {n} is {v} years old
? How old is {n}
? What is {n}'s age
? What age is {n}
? How many years does {n} have
! How many years old is {n}
! Can you tell me how old {n} is
w who is {v} years old => {n} is {v} years old
? Who is {v} years old
? Who is it that is {v} years old
! Which person is {v} years old
y Is {n} {v} years old

plays | person | v=instrument
+ {N} plays the {v}
+ {N} plays the {v} every evening
+ {N} learned to play the {v} as a child
+ {Ns} instrument is the {v}
+ {N} plays the {v} in a {size} band
+ On {day}s {n} plays the {v}
+ {N} can play the {v}
+ {N} plays the {v} very well
+ {N} likes to play the {v} when there is time
+ In the evening one hears {X} play the {v}
- {N} can play the {v} very well
- In the evening {n} likes to play the {v}
b plays the {v}
a what instrument {n} plays => {n} plays the {v}
? What instrument does {n} play
? Which instrument does {n} play
? What does {n} play
? Which instrument can {n} play
! What instrument can {n} play
w who plays the {v} => {n} plays the {v}
? Who plays the {v}
? Who can play the {v}
? Which person plays the {v}
! Who is it that plays the {v}
y Does {n} play the {v}

studies | person | v=subject
+ {N} studies {v}
+ {N} is a student of {v}
+ At school {n} likes {v} best
+ {N} is learning about {v}
+ {N} takes lessons in {v} on {day}s
+ {N} goes to school every day and studies {v}
+ At school {n} likes to study {v}
+ For {years} years {n} has studied {v}
+ {N} has been studying {v} for {years} years
- {N} goes to school to study {v}
- {N} has studied {v} for {years} years
b studies {v}
a what {n} studies => {n} studies {v}
? What does {n} study
? Which subject does {n} study
? What is {n} learning about
! What subject does {n} study
w who studies {v} => {n} studies {v}
? Who studies {v}
? Who is a student of {v}
? Who is it that studies {v}
! Which person studies {v}
y Does {n} study {v}

speaks | person | v=language
+ {N} speaks {v}
+ {N} learned to speak {v} from {p} {relative}
+ {N} can speak {v} very well
+ At home {n} speaks {v}
+ {N} speaks {v} with {p} family
+ {N} speaks good {v} with {p} friends
+ With {p} friends {n} speaks {v}
- With {p} family {n} speaks {v}
- {N} speaks good {v}
b speaks {v}
a what language {n} speaks => {n} speaks {v}
? What language does {n} speak
? Which language does {n} speak
? Which language can {n} speak
! What language can {n} speak
w who speaks {v} => {n} speaks {v}
? Who speaks {v}
? Who can speak {v}
? Which person speaks {v}
! Who is it that speaks {v}
y Does {n} speak {v}

relative | person | r=relative h=person
+ {Ns} {r} is called {h}
+ {Ns} {r} is {h}
+ {N} has a {r} named {h}
+ {N} often visits {p} {r} {h}
+ {h} is {ns} {r}
+ {N} has a {r}, and the name of the {r} is {h}
- {N} has a {r} called {h}
- The name of {ns} {r} is {h}
b has a {r} called {h}
a who {n}'s {r} is => {n}'s {r} is called {h}
? Who is {n}'s {r}
? What is {n}'s {r} called
? What is the name of {n}'s {r}
? Which name does {n}'s {r} have
? How is {n}'s {r} called
! What name does {n}'s {r} have
w whose {r} {h} is => {h} is {n}'s {r}
? Whose {r} is {h}
? Whose {r} is called {h}
! Who has a {r} called {h}

owns | person | c=colour o1=object
+ {N} has a {c} {o1}
+ {N} owns a {c} {o1}
+ {N} always carries a {c} {o1}
+ {Ns} {o1} is {c}
+ {N} keeps a {c} {o1} at home
+ {N} got a {c} {o1} for {p} birthday
+ {N} never leaves home without {p} {c} {o1}
+ Without {p} {c} {o1}, {n} never goes anywhere
+ The {c} {o1} is {ns}
+ A {c} {o1} belongs to {X}
+ {N} goes out every day with {p} {c} {o1}
- {N} never goes out without {p} {c} {o1}
- The {c} {o1} belongs to {X}
b has a {c} {o1}
a what colour {n}'s {o1} is => {n}'s {o1} is {c}
? What colour is {n}'s {o1}
? What is the colour of {n}'s {o1}
? What colour is the {o1} of {n}
! Which colour is {n}'s {o1}
! What colour does {n}'s {o1} have
w who has a {c} {o1} => {n} has a {c} {o1}
? Who has a {c} {o1}
? Who owns a {c} {o1}
? Whose {o1} is {c}
? Who is it that has a {c} {o1}
! Which person has a {c} {o1}
y Does {n} have a {c} {o1}

counts | person | v=number k=animals
+ {N} has {v} {k}
+ {N} keeps {v} {k} on {p} farm
+ {N} looks after {v} {k}
+ On {p} farm {n} has {v} {k}
+ There are {v} {k} on {ns} farm
+ In the meadow there are {v} {k} that belong to {X}
+ {N} owns {v} fine {k}
+ {Ns} {v} {k} live in the meadow
- {N} owns {v} {k}
- In the meadow {n} keeps {v} {k}
b has {v} {k}
a how many {k} {n} has => {n} has {v} {k}
? How many {k} does {n} have
? How many {k} does {n} keep
? How many {k} are {n}'s own
! How many {k} does {n} own
! What number of {k} does {n} have
w who has {v} {k} => {n} has {v} {k}
? Who has {v} {k}
? Which person has {v} {k}
! Who is it that has {v} {k}

travels | person | v=vehicle w=workplace
+ {N} goes to the {w} by {v}
+ {N} takes the {v} to the {w}
+ Every {day} {n} travels to the {w} by {v}
+ To get to the {w}, {n} takes the {v}
+ Every day {n} travels to the {w} by {v}
+ {N} always goes to the {w} by {v}
- {N} always travels to the {w} by {v}
- By {v}, {n} goes to the {w}
b goes to the {w} by {v}
a how {n} gets to the {w} => {n} goes to the {w} by {v}
? How does {n} get to the {w}
? How does {n} go to the {w}
? How does {n} travel to the {w}
? What does {n} take to go to the {w}
? What does {n} travel to the {w} by
! What does {n} take to get to the {w}
w who goes to the {w} by {v} => {n} goes to the {w} by {v}
? Who goes to the {w} by {v}
? Who goes to the {w} by {v} every day
! Who travels to the {w} by {v}

wakes | person | v=hour
+ {N} gets up at {v} every morning
+ {N} wakes up at {v}
+ Every day {n} gets up at {v}
+ {Ns} day begins at {v}
+ In the morning {n} gets up at {v}
+ {N} always gets up at {v} in the morning
+ At {v} every morning {n} wakes up
- At {v} in the morning {n} gets up
- {N} always wakes up at {v}
b gets up at {v}
a when {n} gets up => {n} gets up at {v}
? When does {n} get up
? At what time does {n} get up
? When does {n} wake up
! What time does {n} get up
w who gets up at {v} => {n} gets up at {v}
? Who gets up at {v}
? Who is it that gets up at {v}
! Which person gets up at {v}

season | person | v=season
+ {Ns} favourite season is {v}
+ {N} likes {v} more than any other season
+ The season {n} likes best is {v}
+ {N} is always happy in {v}, {p} favourite season
+ Of all the seasons {v} is the one that {n} likes best
+ {N} says that no season is as good as {v}
+ For {X} {v} is the best of all seasons
- Of all seasons {n} likes {v} best
- {N} says that {v} is the best season
b likes {v} best
a what {n}'s favourite season is => {n}'s favourite season is {v}
? What is {n}'s favourite season
? Which season does {n} like best
! What season is {n}'s favourite
w whose favourite season is {v} => {n}'s favourite season is {v}
? Whose favourite season is {v}
? Who likes {v} more than all other seasons
! Who likes {v} best of all seasons

friend | person | h=person
+ {Ns} best friend is {h}
+ {N} has a good friend called {h}
+ {N} is best friends with {h}
+ {N} and {h} are best friends
+ {N} has been a friend of {h} for {years} years, {p} best friend
+ The best friend that {n} has is {h}
+ For {years} years {h} has been {ns} best friend
+ {h} and {n} have been best friends for years
- The best friend of {X} is {h}
- {N} has been best friends with {h} for {years} years
b is best friends with {h}
a who {n}'s best friend is => {n}'s best friend is {h}
? Who is {n}'s best friend
? What is the name of {n}'s best friend
? Who is {n} best friends with
? How is {n}'s best friend called
! Who is the best friend of {n}
! What is {n}'s best friend called

wants | person | v=place
+ {N} wants to visit {v} one day
+ One day {n} wants to travel to {v}
+ {N} dreams of a trip to {v}
+ {N} hopes to see {v} next {season}
+ {N} saves {p} money for a trip to {v}
+ {N} is planning a trip to {v}
+ For a trip to {v} {n} is saving every coin
- {N} is saving money for a trip to {v}
- Next {season} {n} wants to see {v}
b wants to visit {v}
a where {n} wants to go => {n} wants to visit {v}
? Where does {n} want to go
? Which town does {n} want to visit
? What place does {n} hope to see
? To which town does {n} want to travel
! Where does {n} want to travel
! Which place does {n} want to see
w who wants to visit {v} => {n} wants to visit {v}
? Who wants to visit {v}
? Which person wants to visit {v}
! Who is it that wants to visit {v}

fears | person | v=fear
+ {N} is afraid of {v}
+ {N} has always been afraid of {v}
+ The only thing {n} is afraid of is {v}
+ {N} does not like {v} and runs away from them
+ {N} is very afraid of {v}
+ Nothing but {v} can scare {X}
+ What scares {X} most is {v}
+ {v} scare {X} very much
+ {N} fears nothing but {v}
- {N} is very much afraid of {v}
- Nothing scares {X} but {v}
b is afraid of {v}
a what {n} is afraid of => {n} is afraid of {v}
? What is {n} afraid of
? What scares {n}
? What has {n} been afraid of since {p} childhood
! What has {n} always been afraid of
w who is afraid of {v} => {n} is afraid of {v}
? Who is afraid of {v}
? Who is it that is afraid of {v}
! Which person is afraid of {v}
y Is {n} afraid of {v}

river | town | k=water h=watername
+ {N} lies on the {k} {h}
+ The {k} near {n} is called {h}
+ Close to {n} there is a {k} called {h}
+ {N} was built next to a {k} named {h}
+ {N} stands near a {k} named {h}
+ By a {k} called {h} lies {X}
+ At {X} there is a {k}, and its name is {h}
+ The name of the {k} near {X} is {h}
- {N} stands by a {k} called {h}
- The name of the {k} at {X} is {h}
b lies near a {k} called {h}
a what the {k} near {n} is called => The {k} near {n} is called {h}
? What is the {k} near {n} called
? What is the name of the {k} near {n}
? Which {k} does {n} have
! Which {k} is near {n}
! How is the {k} near {n} called

famous | town | v=famous
+ {N} is famous for {v}
+ {N} is known for {v}
+ Many people visit {n} because of {v}
+ {N} is proud of {v}
+ Visitors come to {n} to see {v}
+ What {n} is famous for is {v}
+ {v} made {X} famous
+ {N} is known all over the world for {v}
+ In the whole country {n} is known for {v}
+ People from all over come to {X} for {v}
+ The thing that makes {X} known is {v}
- What makes {X} famous is {v}
- All over the country {n} is known for {v}
b is famous for {v}
a what {n} is famous for => {n} is famous for {v}
? What is {n} famous for
? What is {n} known for
? Why do people visit {n}
? For what is {n} known
? What made {n} famous
? Which thing makes {n} famous
! What makes {n} famous
w which town is famous for {v} => {n} is famous for {v}
? Which town is famous for {v}
? Which town is known for {v}
? What town is famous for {v}
! Which of the towns is famous for {v}
y Is {n} famous for {v}

founded | town | v=year
+ {N} was founded in {v}
+ {N} was built in {v}
+ In {v}, the town of {X} was founded
+ The first houses of {X} were built in {v}
+ {N} has been there since {v}, when it was founded
+ Since {v} there has been a town called {X}
- {N} has been a town since {v}
- The town of {X} was built in {v}
b was founded in {v}
a when {n} was founded => {n} was founded in {v}
? When was {n} founded
? In what year was {n} founded
? When was {n} built
? In what year did people found {n}
? What year was {n} founded in
! In which year was {n} founded
w which town was founded in {v} => {n} was founded in {v}
? Which town was founded in {v}
? Which of the towns was founded in {v}
! What town was founded in {v}

people | town | v=bignumber
+ About {v} people live in {n}
+ {N} has {v} people
+ {N} is home to {v} people
+ Only {v} people live in {n}
+ In {X} live {v} people
+ There are {v} people in {X} today
+ Today about {v} people live in {X}
- In {X} there are {v} people
- Today {n} has about {v} people
b has {v} people
a how many people live in {n} => {v} people live in {n}
? How many people live in {n}
? How many people does {n} have
? What is the number of people in {n}
? How many people are in {n}
! What number of people live in {n}
! How many people are there in {n}

building | town | c=adjective v=building
+ {N} has a {c} {v}
+ In the middle of {n} there is a {c} {v}
+ The {v} of {X} is {c}
+ There is a {c} {v} in {n}
+ In {X} people can visit a {c} {v}
+ You can see a {c} {v} when you come to {X}
+ {N} is the home of a {c} {v}
+ There is a {c} {v} to see in {X}
- In {X} you can see a {c} {v}
- {N} is home to a {c} {v}
b has a {c} {v}
a what there is in {n} => There is a {c} {v} in {n}
? What is there in {n}
? What can you see in {n}
? What building is in the middle of {n}
? What building does {n} have
? Which building can you see in {n}
! Which building does {n} have
w which town has a {v} => {n} has a {v}
? Which town has a {v}
? Where is there a {v}
? What town has a {v}
! Which of the towns has a {v}
y Does {n} have a {v}

mayor | town | h=person
+ The mayor of {X} is {h}
+ {h} is the mayor of {X}
+ {Ns} mayor is called {h}
+ {N} has a mayor named {h}
+ The people of {X} call their mayor {h}
+ {N} has a mayor, and the people call {o} {h}
- The people of {X} have a mayor called {h}
- {Ns} mayor is {h}
b has a mayor called {h}
a who the mayor of {n} is => The mayor of {n} is {h}
? Who is the mayor of {n}
? What is the name of {n}'s mayor
? What is the mayor of {n} called
? Which name does the mayor of {n} have
! What is the mayor's name in {n}

marketday | town | v=day
+ {N} has a market every {v}
+ On {v}s there is a market in {n}
+ The market of {X} is on {v}
+ {Ns} market is held on {v}s
+ On {v}s the market opens in {X}
+ The market of {X} opens every {v}
- Every {v} there is a market in {X}
- The market in {n} opens on {v}s
b has a market every {v}
a when the market in {n} is => The market in {n} is on {v}
? When is the market in {n}
? On which day is the market in {n}
? When does {n} have a market
? What day of the week is market day in {n}
! What day is the market in {n}
w which town has a market on {v} => {n} has a market on {v}
? Which town has a market on {v}
? Which town has its market every {v}
? Which of the towns has a market every {v}
! What town has a market every {v}

sells | shop | v=goods
+ {N} sells {v}
+ {N} is a shop that sells {v}
+ You can buy {v} at {n}
+ {N} is the best place to buy {v}
+ People go to {n} for {v}
+ For {years} years {n} has sold {v}
+ At {X} you can buy {v}
+ People come to {X} to buy {v}
+ {v} are sold at {X}
- At {X} people buy {v}
- {N} has sold {v} for {years} years
b sells {v}
a what {n} sells => {n} sells {v}
? What does {n} sell
? What can you buy at {n}
? What do people buy at {n}
? Which things can you buy at {n}
! Which things does {n} sell
w which shop sells {v} => {n} sells {v}
? Which shop sells {v}
? Where can you buy {v}
? Who sells {v}
! What shop sells {v}
y Does {n} sell {v}

opens | shop | v=hour d=day
+ {N} opens at {v} on {d}s
+ On {d}s, {n} opens at {v}
+ Every {d} {n} opens its doors at {v}
+ {N} is open on {d}s from {v} on
+ From {v} on {d}s the doors of {X} are open
+ The doors of {X} open at {v} on {d}s
- {N} is open from {v} on {d}s
- On {d} the doors of {X} open at {v}
b opens at {v} on {d}s
a when {n} opens on {d} => {n} opens at {v} on {d}s
? When does {n} open on {d}
? At what time does {n} open on {d}
! What time does {n} open on {d}

closed | shop | v=day
+ {N} is closed on {v}s
+ On {v}s, {n} stays closed
+ {N} does not open on {v}s
+ Every {v} the doors of {X} are closed
+ {N} is closed every {v}, but open on all other days
+ On every day but {v} {n} is open
- Every {v}, {n} is closed
- {N} is open every day but {v}
b is closed on {v}s
a when {n} is closed => {n} is closed on {v}s
? When is {n} closed
? On which day is {n} closed
? Which day is {n} not open
! What day is {n} closed

owner | shop | h=person
+ {N} belongs to {h}
+ The owner of {X} is {h}
+ {h} owns {X}
+ {N} is run by {h}
+ {h} is the owner of {X}
+ The owner that {n} has is called {h}
+ {N} has belonged to its owner, {h}, for years
+ {h} is the one who runs {X}
- {X} is owned by {h}
- {N} has an owner called {h}
b belongs to {h}
a who owns {n} => {h} owns {n}
? Who owns {n}
? Who is the owner of {n}
? Who does {n} belong to
? Which person runs {n}
! What is the name of the owner of {n}
! Who runs {n}

stands | shop | v=place
+ {N} is in {v}
+ {N} stands in the middle of {v}
+ {N} is a {size} shop in {v}
+ You can find {n} in {v}
+ You can find {X} in {v}
+ A shop called {X} is in {v}
+ There is a shop in {v}, and it is called {X}
+ In {v} people can find {X}
- {N} is found in {v}
- In {v} there is a shop called {X}
b is in {v}
a where {n} is => {n} is in {v}
? Where is {n}
? In which town is {n}
? Where can you find {n}
! Which town is {n} in
w which shop is in {v} => {n} is in {v}
? Which shop is in {v}
! What shop is in {v}

price | shop | k=object v=number
+ At {X} a {k} costs {v} coins
+ {N} sells a {k} for {v} coins
+ A {k} at {X} costs {v} coins
+ The price of a {k} is {v} coins at {X}
+ At {X} you can buy a {k} for {v} coins
+ For a {k} {n} asks {v} coins
+ Whoever wants to buy a {k} at {X} pays {v} coins
- For {v} coins you can buy a {k} at {X}
- The price of a {k} at {X} is {v} coins
b sells a {k} for {v} coins
a how much a {k} costs at {n} => A {k} costs {v} coins at {n}
? How much does a {k} cost at {n}
? What does a {k} cost at {n}
? What is the price of a {k} at {n}
? How many coins is a {k} at {n}
! How many coins does a {k} cost at {n}
"""

EVENTS = """
lost | person | c=colour k=object p1=spot h=person d=day
+ On {d} {n} lost {p} {c} {k} {p1}
+ {N} lost {p} {c} {k} {p1} on {d}
+ Last {d}, {n} dropped {p} {c} {k} {p1} and lost it
+ On {d}, while {s} was {p1}, {n} lost {p} {c} {k}
+ {N} lost a {c} {k} {p1} last {d}
+ It was {p1} that {n} lost {p} {c} {k}, on {d}
+ A {c} {k} was lost {p1} by {X} on {d}
- Last {d} {n} lost a {c} {k} {p1}
- It was on {d} that {n} lost {p} {c} {k} {p1}
/
+ {S} looked everywhere but could not find it
+ {S} searched for hours
+ {S} was very sad about it
+ {S} asked everyone about the {k}
+ Until dark {s} looked for it
+ {S} searched for it for a long time
+ It was in vain that {s} looked everywhere
- {S} looked for it until dark
- For a long time {s} searched in vain
/
+ At last {h} found the {k} and brought it back
+ The next day {h} found it and gave it back to {o}
+ Then {h} saw the {k} and picked it up for {o}
+ In the end {h} found the {k}
+ Later that day {h} found the {k}
+ Luckily the {k} was found by {h}
+ The next morning {h} came with the {k}
+ {h} came and had the {k} in {hp} hand
- Later {h} came with the {k} in {hp} hand
- Luckily {h} found the {k} the next morning
s {n} lost {p} {c} {k} {p1}, and {h} found it.
a what {n} lost => {n} lost a {c} {k}
? What did {n} lose
? What did {n} lose on {d}
? Which thing did {n} lose
? What was it that {n} lost
! What is the thing that {n} lost
a where {n} lost the {k} => {n} lost the {k} {p1}
? Where did {n} lose the {k}
? Where was the {k} lost
? At which place did {n} lose the {k}
! In what place did {n} lose the {k}
a who found the {k} => {h} found the {k}
? Who found the {k}
? Who brought the {k} back
? Who was it that found the {k}
! Who is the one that found the {k}
a when {n} lost the {k} => {n} lost the {k} on {d}
? When did {n} lose the {k}
? On which day did {n} lose the {k}
? What day did {n} lose the {k}
! On what day did {n} lose the {k}
w who lost a {k} => {n} lost a {k}
? Who lost a {k}
? Who lost the {k}
? Which person lost the {k}
! Who is it that lost the {k}

found | person | c=colour k=object p1=spot h=person
+ {N} found a {c} {k} {p1}
+ One morning {n} found a {c} {k} {p1}
+ While {s} was walking, {n} found a {c} {k} {p1}
+ Last {day} {n} saw a {c} {k} {p1} and picked it up
+ {N} came upon a {c} {k} {p1} by chance
+ One evening {n} found a {c} {k} {p1}
+ To {p} surprise {n} came upon a {c} {k} {p1}
+ {N} was surprised when {s} found a {c} {k} {p1}
- One evening {n} came upon a {c} {k} {p1}
- {N} was surprised to find a {c} {k} {p1}
/
+ {S} asked everyone whose it was
+ {S} did not know whose it was
+ {S} wanted to find the owner
+ Nobody knew whose it was
+ Nobody could say who the owner was
+ {S} went from door to door and asked
- Nobody knew who the owner was
- {S} asked from door to door
/
+ It belonged to {h}, who was very happy to have it back
+ The {k} belonged to {h}, who thanked {o}
+ In the end {s} gave the {k} back to {h}
+ Then {h} came and asked for the {k}
+ At last {s} found the owner, {h}, and gave it back
+ {h} was the owner, so {s} brought it back
+ {S} brought it back to the owner, {h}
- The owner was {h}, and {s} gave it back
- At last {s} brought the {k} back to {h}
s {n} found a {c} {k} {p1} and gave it back to {h}.
a what {n} found => {n} found a {c} {k}
? What did {n} find
? What did {n} pick up
? What is the thing that {n} found
! What was it that {n} found
a where {n} found the {k} => {n} found the {k} {p1}
? Where did {n} find the {k}
? Where was the {k}
? In what place did {n} find the {k}
! At which place did {n} find the {k}
a who the {k} belonged to => The {k} belonged to {h}
? Who did the {k} belong to
? Whose {k} was it
? Who owned the {k}
! Who was the owner of the {k}
w who found the {k} => {n} found the {k}
? Who found the {k}
? Who found a {k}
? Who is it that found the {k}
! Which person found the {k}

made | person | v=made m=month h=person
+ In {m} {n} built a {v}
+ {N} built a {v} in {m}
+ Last {m}, {n} decided to build a {v}
+ {N} wanted a {v}, so {s} built one in {m}
+ In {m} {n} began to build a {v}
+ It was a {v} that {n} built in {m}
+ Last {m} {n} built a {v}
- It was in {m} that {n} built a {v}
- Last {m} {n} began to build a {v}
/
+ {h} helped {o} with the work
+ {S} had help from {h}
+ {S} worked on it together with {h}
+ {Ps} friend {h} came to help
+ Without the help of {h} it would not have been done
+ Every day {h} came and helped {o}
+ The work was too hard without {h}, who came to help
- Without {h} the work would have been too hard
- {h} came every day to help {o}
/
+ It took {years} days to finish
+ When it was done, everyone admired it
+ They were very proud of it
+ They were both proud of it at the end
+ Many people came to look
+ In the end both were proud
- At the end they both were proud
- People came to look at it
s {n} built a {v} with the help of {h}.
a what {n} built => {n} built a {v}
? What did {n} build
? What did {n} make
? What was it that {n} built
! What is the thing that {n} built
a who helped {n} => {h} helped {n}
? Who helped {n}
? Who helped {n} to build the {v}
? Who came to help {n}
? From whom did {n} get help
! Who gave {n} help
a when {n} built the {v} => {n} built the {v} in {m}
? When did {n} build the {v}
? In which month did {n} build the {v}
? What month did {n} build the {v} in
! In what month did {n} build the {v}
w who built a {v} => {n} built a {v}
? Who built a {v}
? Who built the {v}
? Which person built a {v}
! Who is it that built a {v}

won | person | v=contest w=prize p2=place d=day
+ On {d} {n} won a {v} in {p2}
+ {N} won the {v} in {p2} on {d}
+ Last {d} there was a {v} in {p2}, and {n} won it
+ {N} took part in a {v} in {p2} on {d} and won
+ {N} was the winner of the {v} in {p2} on {d}
+ The winner of the {v} in {p2} last {d} was {X}
+ It was on {d} that {n} won the {v} in {p2}
+ {X} was the one who won the {v} in {p2} on {d}
- Last {d} {n} was the winner of a {v} in {p2}
- It was {X} who won the {v} in {p2} on {d}
/
+ {S} had practised for {years} weeks
+ Many people had come to watch
+ {S} could not believe it at first
+ Every day {s} had practised for it
+ The people cheered for {o}
+ All who were there cheered
- {S} had practised every day
- All the people cheered for {o}
/
+ The prize was a {w}
+ For this {s} got a {w}
+ {S} took home a {w}
+ The winner was given a {w}
+ {Ps} prize, a {w}, was very fine
+ As the winner {s} got a {w} as a prize
+ The prize that {s} got was a {w}
- {Ps} prize was a {w}
- As a prize {s} got a {w}
s {n} won a {v} in {p2} and got a {w}.
a what {n} won => {n} won a {v}
? What did {n} win
? Which contest did {n} win
? What is the thing that {n} won
! What was it that {n} won
a what prize {n} got => {n} got a {w}
? What prize did {n} get
? What was the prize
? What did {n} get for winning
? What prize did {n} take home
! Which prize did {n} take home
a where the {v} was => The {v} was in {p2}
? Where was the {v}
? In which town was the {v}
? In which town did the {v} take place
! Where did the {v} take place
a when {n} won the {v} => {n} won the {v} on {d}
? When did {n} win the {v}
? On which day was the {v}
? On what day did {n} win the {v}
! What day did {n} win the {v}
w who won the {v} => {n} won the {v}
? Who won the {v}
? Who was the winner of the {v}
? Who is it that won the {v}
! Which person won the {v}

rescued | person | k=rescued p1=spot q=petname w=weather
+ During a {w} {n} found a {k} {p1}
+ {N} found a hurt {k} {p1} after a {w}
+ After a {w}, {n} saw a {size} {k} {p1}
+ One day there was a {w}, and {n} found a lost {k} {p1}
+ When it was all over, {n} found a {k} {p1}, for there had been a {w}
+ During the {w} {n} heard a {k} {p1}
+ {N} heard the cry of a {k} {p1} when the {w} was over
+ A {k} was found {p1} by {X} when the {w} was over
- When the {w} was over, {n} found a {k} {p1}
- {N} heard a {k} cry {p1} during a {w}
/
+ {S} took it home and gave it food
+ {S} carried it home in {p} coat
+ {S} took care of it for {years} days
+ {S} brought it home and gave it a warm place
+ There {s} kept it warm with a blanket
+ {S} gave it some milk at home
- {S} brought it home and kept it warm
- At home {s} gave it milk and a blanket
/
+ {S} called it {q}
+ Now the {k} lives with {o} and is called {q}
+ {S} named the {k} {q} and kept it
+ The {k} stayed, and {s} named it {q}
+ The name that {s} gave the {k} is {q}
+ {S} named it {q}, and it stayed with {o}
+ It got the name {q} and stayed
- {S} gave the {k} the name {q}
- It stayed with {o}, and its name is {q}
s {n} rescued a {k} {p1} and called it {q}.
a what {n} found => {n} found a {k}
? What did {n} find
? Which animal did {n} find
? What animal did {n} rescue
? What animal did {n} help
! Which animal did {n} help
a where {n} found the {k} => {n} found the {k} {p1}
? Where did {n} find the {k}
? Where was the {k}
? At which place did {n} find the {k}
! In what place did {n} find the {k}
a what {n} called the {k} => {n} called the {k} {q}
? What did {n} call the {k}
? What is the name of the {k}
? What is the {k} called
! What name did {n} give the {k}
w who rescued the {k} => {n} rescued the {k}
? Who rescued the {k}
? Who found the {k}
? Which person rescued the {k}
! Who is it that rescued the {k}

shop | person | v=goods p2=place m=month sh=shopname
+ In {m} {n} opened a shop in {p2}
+ {N} opened a {size} shop in {p2} in {m}
+ Last {m}, {n} opened a new shop in {p2}
+ {N} had saved money for years and opened a shop in {p2} in {m}
+ In {p2} {n} has had a shop since {m}
+ It is in {p2} that {n} opened a shop in {m}
+ Since last {m} {n} has a shop in {p2}
- It was in {m} that {n} opened a shop in {p2}
- Since {m} {n} has had a shop in {p2}
/
+ The shop sells {v}
+ {S} sells {v} there
+ People come to buy {v}
+ In it {s} sells {v}
+ There you can buy {v}
+ What you can buy there is {v}
+ {v} are what {s} sells
- You can buy {v} there
- What {s} sells there is {v}
/
+ It is called {sh}
+ {S} called the shop {sh}
+ The name of the shop is {sh}
+ Everyone calls it {sh}
+ The name {s} gave it is {sh}
+ It is known to everyone as {sh}
- {S} gave it the name {sh}
- Everyone knows it as {sh}
s {n} opened a shop in {p2} that sells {v}.
a what {n} opened => {n} opened a shop in {p2}
? What did {n} open
? What did {n} do in {m}
? What was it that {n} opened
! What is the thing that {n} opened
a where {n} opened a shop => {n} opened a shop in {p2}
? Where did {n} open a shop
? Where is {n}'s shop
? In which town is {n}'s shop
! Which town is {n}'s shop in
a what {n}'s shop sells => {n}'s shop sells {v}
? What does {n} sell
? What does {n}'s shop sell
? What can you buy at {n}'s shop
? Which things are sold in {n}'s shop
! Which things does {n} sell
a what {n}'s shop is called => {n}'s shop is called {sh}
? What is {n}'s shop called
? What is the name of {n}'s shop
? Which name did {n} give the shop
! What name does {n}'s shop have
a when {n} opened the shop => {n} opened the shop in {m}
? When did {n} open the shop
? In which month did {n} open the shop
? In what month did {n} open the shop
! What month did {n} open the shop in
w who opened a shop in {p2} => {n} opened a shop in {p2}
? Who opened a shop in {p2}
? Who opened a shop
? Who is it that opened a shop
! Which person opened a shop

trip | person | p2=place v=vehicle d=day h=person
+ On {d} {n} travelled to {p2} by {v}
+ {N} took the {v} to {p2} on {d}
+ Last {d}, {n} went to {p2} by {v}
+ On {d} {n} made a trip to {p2} by {v}
+ {N} got on a {v} to {p2} last {d}
+ On {d} {n} got on a {v} that went to {p2}
- Last {d} {n} got on a {v} and went to {p2}
- By {v}, {n} travelled to {p2} on {d}
/
+ There {s} visited {h}
+ {S} wanted to see {h}
+ {S} went to see {h}, an old friend
+ There {s} met {h}
+ There was {h}, who was waiting for {o}
+ {h} had been waiting for {o}
+ In {p2} {h} and {n} met
- In {p2} {s} met {h}
- {h} was waiting for {o} there
/
+ They walked through the town and ate {food}
+ They talked until late in the evening
+ The weather was fine all day
+ {S} came home {years} days later
+ They ate {food} together in the evening
+ It was a good day for both
- In the evening they ate {food} together
- It was a very good day
s {n} travelled to {p2} by {v} and met {h}.
a where {n} went => {n} went to {p2}
? Where did {n} go
? Where did {n} travel
? Which town did {n} visit
! What place did {n} travel to
a how {n} got to {p2} => {n} went to {p2} by {v}
? How did {n} get to {p2}
? How did {n} travel
? How did {n} travel to {p2}
? What did {n} take to go to {p2}
? By what did {n} get to {p2}
! What did {n} take to get to {p2}
a who {n} met in {p2} => {n} met {h} in {p2}
? Who did {n} meet
? Who did {n} visit
? Who did {n} meet in {p2}
? Who is the one that {n} met
! Who was it that {n} met
a when {n} went to {p2} => {n} went to {p2} on {d}
? When did {n} go to {p2}
? On which day did {n} travel to {p2}
? What day did {n} go to {p2}
! On what day did {n} go to {p2}
w who went to {p2} => {n} went to {p2}
? Who went to {p2}
? Who travelled to {p2}
? Which person went to {p2}
! Who is it that went to {p2}

planted | person | v=plant p1=spot y=number m=month
+ In {m} {n} planted a {v} {p1}
+ {N} planted a {v} {p1} in {m}
+ Last {m}, {n} put a young {v} into the ground {p1}
+ One day {n} planted a {v} {p1}, in {m}
+ It was a {v} that {n} planted {p1} in {m}
+ In {m}, one day, a {size} {v} was planted {p1} by {X}
- It was in {m} that {n} planted a {v} {p1}
- One day in {m} {n} planted a {size} {v} {p1}
/
+ {S} watered it every day
+ At first it was very small
+ {S} took good care of it
+ Every day {s} gave it water
+ In the morning {s} looked at it
+ {S} looked after it every morning
- Every morning {s} gave it water
- {S} looked at it every day
/
+ After {y} weeks it had its first flowers
+ It took {y} weeks until the first flowers came
+ {y} weeks later it was full of flowers
- It had flowers after {y} weeks
- The first flowers came after {y} weeks
s {n} planted a {v} {p1}, and it had flowers after {y} weeks.
a what {n} planted => {n} planted a {v}
? What did {n} plant
? What did {n} plant {p1}
? What is the thing that {n} planted
! What was it that {n} planted
a where {n} planted the {v} => {n} planted the {v} {p1}
? Where did {n} plant the {v}
? Where is the {v}
? In what place did {n} plant the {v}
! At which place did {n} plant the {v}
a when {n} planted the {v} => {n} planted the {v} in {m}
? When did {n} plant the {v}
? In which month did {n} plant the {v}
? What month did {n} plant the {v} in
! In what month did {n} plant the {v}
a how long it took until the {v} had flowers => It took {y} weeks until the {v} had flowers
? How long did it take until the {v} had flowers
? How many weeks did it take
! After how many weeks did the {v} have flowers
w who planted the {v} => {n} planted the {v}
? Who planted a {v}
? Who planted the {v}
? Who is it that planted the {v}
! Which person planted the {v}

cooked | person | v=cooked h=person f=food d=day
+ On {d} {n} made a {v} for {h}
+ {N} made a {v} for {h} on {d}
+ Last {d}, {n} wanted to surprise {h} and made a {v}
+ It was for {h} that {n} made a {v} on {d}
+ On {d} {n} made a {v} that was for {h}
- It was on {d} that {n} made a {v} for {h}
- For {h}, {n} made a {v} on {d}
/
+ {S} put {f} into it
+ It was made with {f}
+ {S} used {f} from the market
+ There were {f} in it
+ For it {s} had bought {f}
+ {S} bought {f} and put them in
- In it there were {f}
- {S} bought {f} for it
/
+ {h} liked it very much
+ {h} ate all of it
+ They ate it together
+ {h} thanked {o} many times
+ Nothing had ever tasted so good, said {h}
+ {h} said that it tasted better than ever
- {h} thanked {o} for it
- {h} said that nothing had ever tasted better
s {n} made a {v} with {f} for {h}.
a what {n} made => {n} made a {v}
? What did {n} make
? What did {n} cook
? What did {n} make for {h}
? What was it that {n} made
! What is the thing that {n} made
a who {n} made the {v} for => {n} made the {v} for {h}
? Who did {n} make the {v} for
? Who was the {v} for
? For whom did {n} make the {v}
! Who got the {v}
a what {n} put into the {v} => {n} put {f} into the {v}
? What did {n} put into the {v}
? What was the {v} made with
? What was inside the {v}
! What was in the {v}
a when {n} made the {v} => {n} made the {v} on {d}
? When did {n} make the {v}
? On which day did {n} make the {v}
? On what day did {n} make the {v}
! What day did {n} make the {v}
w who made the {v} => {n} made the {v}
? Who made a {v}
? Who made the {v}
? Which person made the {v}
! Who is it that made the {v}

learned | person | v=skill h=person y=number
+ {N} wanted to learn to {v}
+ Last {season} {n} decided to learn to {v}
+ {N} could not {v} and was sad about it
+ For a long time {n} had wanted to {v}
+ {N} said one day: I want to {v}
+ {N} wanted to {v} and had always said so
+ It had always been {ns} wish to {v}
+ One day {n} began to learn how to {v}
- {N} had always wanted to {v}
- One day {n} said that {s} wanted to {v}
/
+ {h} showed {o} how to do it
+ {S} asked {h} for lessons
+ {S} took lessons from {h}
+ {S} had a good teacher, {h}
+ The teacher was {h}, who gave {o} lessons
+ Every week {h} gave {o} a lesson
+ {h} was the one who taught {o}
- The one who taught {o} was {h}
- {h} gave {o} lessons every week
/
+ After {y} weeks {s} could {v}
+ It took {o} {y} weeks to learn it
+ {y} weeks later {s} could do it well
+ In {y} weeks {s} could do it
+ {S} learned it in {y} weeks
+ After {y} weeks {s} was able to {v}
- In {y} weeks {s} learned it
- {S} was able to do it after {y} weeks
s {n} learned to {v} from {h} in {y} weeks.
a what {n} learned => {n} learned to {v}
? What did {n} learn
? What did {n} want to learn
? What is the thing that {n} learned
! What was it that {n} learned
a who taught {n} => {h} taught {n} to {v}
? Who taught {n}
? Who taught {n} to {v}
? Who was {n}'s teacher
? From whom did {n} get lessons
! Who gave {n} lessons
a how long it took {n} => It took {n} {y} weeks
? How long did it take {n}
? How many weeks did it take {n}
? How many weeks was it until {n} could {v}
! After how many weeks could {n} {v}
w who learned to {v} => {n} learned to {v}
? Who learned to {v}
? Who is it that learned to {v}
! Which person learned to {v}

gift | person | c=colour k=object h=person d=day
+ On {d} {n} gave {h} a {c} {k}
+ {N} gave a {c} {k} to {h} on {d}
+ Last {d}, {n} bought a {c} {k} and gave it to {h}
+ It was {h} to whom {n} gave a {c} {k} on {d}
+ What {n} gave {h} on {d} was a {c} {k}
+ On {d} it was a {c} {k} that {n} gave {h}
- It was on {d} that {n} gave {h} a {c} {k}
- A {c} {k} was what {n} gave {h} on {d}
/
+ It was for {hp} birthday
+ {h} had wanted one for a long time
+ {h} was very happy about it
+ {h} had not thought of it
+ {h} did not expect a gift
+ Many times {h} thanked {o}
+ Nothing of the kind was expected by {h}
- {h} had not expected it
- {h} thanked {o} many times
s {n} gave {h} a {c} {k} on {d}.
a what {n} gave {h} => {n} gave {h} a {c} {k}
? What did {n} give {h}
? What did {n} give to {h}
? What did {h} get
? What was it that {n} gave {h}
! What is the thing that {n} gave {h}
a who {n} gave the {k} to => {n} gave the {k} to {h}
? Who did {n} give the {k} to
? Who got the {k}
? Who was it that got the {k}
! Who is the one that got the {k}
a when {n} gave {h} the {k} => {n} gave {h} the {k} on {d}
? When did {n} give {h} the {k}
? On which day did {h} get the {k}
? What day did {h} get the {k}
! On what day did {h} get the {k}
w who gave {h} the {k} => {n} gave {h} the {k}
? Who gave {h} the {k}
? Who gave {h} a {k}
? Which person gave {h} the {k}
! Who is it that gave {h} the {k}

repaired | person | k=object h=person v=number
+ {Ns} {k} was broken, so {s} took it to {h}
+ When {p} {k} broke, {n} took it to {h}
+ {N} broke {p} {k} and asked {h} to repair it
+ {Ns} {k} broke, so {s} brought it to {h}
+ {N} had a broken {k} and brought it to {h}
+ {h} offered help when {ns} {k} broke
+ {N} took a broken {k} to {h}, who offered to repair it
- {Ns} {k} broke, and {h} offered to repair it
- {N} brought a broken {k} to {h}
/
+ {h} repaired it in {v} days
+ It took {h} {v} days to repair it
+ After {v} days {h} had repaired it
+ {h} made it new in {v} days
+ The work took {h} {v} days
+ For the work {h} needed {v} days
+ It was as good as new after {v} days, thanks to {h}
- {h} needed {v} days for the work
- In {v} days {h} made it as good as new
/
+ {N} paid with a basket of {food}
+ Now it works again
+ It is as good as new
+ {S} thanked {h} and was glad
+ {S} can use the {k} again now
- {S} was glad and thanked {h}
- Now {s} can use it again
s {h} repaired {n}'s broken {k} in {v} days.
a what {h} repaired => {h} repaired {n}'s {k}
? What did {h} repair
? What was broken
! What did {n} take to {h}
a who repaired the {k} => {h} repaired the {k}
? Who repaired the {k}
? Who repaired {n}'s {k}
? Who made the {k} new
! Who made the {k} work again
a how long it took to repair the {k} => It took {v} days to repair the {k}
? How long did it take to repair the {k}
? How many days did it take
? How many days did {h} take for the {k}
? How many days did {h} need to repair it
! How many days did {h} need for the {k}
w whose {k} was broken => {n}'s {k} was broken
? Whose {k} was broken
! Who had a broken {k}

moved | person | p1=place p2=place y=year
+ In {y} {n} moved from {p1} to {p2}
+ {N} moved from {p1} to {p2} in {y}
+ {N} left {p1} in {y} and moved to {p2}
+ {N} left {p1} in {y} for {p2}
+ In {y} {n} went from {p1} to {p2} to live there
+ {N} went to {p2} from {p1}, in {y}, and stayed there
+ It was {p1} that {n} left in {y} when {s} moved to {p2}
- It was in {y} that {n} left {p1} for {p2}
- {N} went from {p1} to {p2} in {y} and stayed
/
+ {S} had found a better job there
+ {S} wanted to be close to the sea
+ {S} missed {p} old friends at first
+ It was not easy in the first weeks
+ Soon {s} had new friends
+ {S} soon met new friends there
- The first weeks were not easy
- {S} soon made new friends
s {n} moved from {p1} to {p2} in {y}.
a where {n} moved to => {n} moved to {p2}
? Where did {n} move to
? Which town did {n} move to
! What place did {n} move to
a where {n} moved from => {n} moved from {p1}
? Where did {n} move from
? Which town did {n} leave
? What town did {n} leave
! Which of the towns did {n} leave
a when {n} moved => {n} moved in {y}
? When did {n} move
? In which year did {n} move to {p2}
! In what year did {n} move
w who moved to {p2} => {n} moved to {p2}
? Who moved to {p2}
? Who is it that moved to {p2}
! Which person moved to {p2}

storm | town | w=weather v=building d=day h=person
+ On {d} a {w} damaged the {v} of {X}
+ A {w} came to {n} on {d} and damaged the {v}
+ On {d} there was a {w} in {n}, and the {v} was damaged
+ It was a {w} that damaged the {v} in {X} on {d}
+ On {d} the {v} in {X} was damaged by a {w}
+ By a {w} the {v} of {X} was damaged last {d}
- It was on {d} that a {w} damaged the {v} in {X}
- The {v} of {X} was damaged by a {w} on {d}
/
+ Nobody was hurt
+ The people of the town were sad
+ Many people had to leave their houses
+ Nobody was hurt, luckily
+ The people helped each other all day
+ Each helped the other
- Luckily nobody was hurt
- All the people helped each other
/
+ {h} began to repair it the next day
+ Now {h} will repair it
+ {h} said that it would be repaired soon
+ The work, {h} has said, will begin soon
+ {h} came the next day to begin the work
+ To repair it, {h} came at once
+ {h} is going to help with the work
- The next day {h} came to repair it
- {h} has said that the work will begin soon
s A {w} damaged the {v} of {n} on {d}.
a what was damaged in {n} => The {v} of {n} was damaged
? What was damaged in {n}
? Which building was damaged
? What did the {w} damage
! What building in {n} was damaged
a when the {w} came to {n} => The {w} came to {n} on {d}
? When did the {w} come
? On which day was the {w}
! What day was the {w}
a what damaged the {v} => A {w} damaged the {v}
? What damaged the {v}
? Why was the {v} damaged
? What happened in {n} to the {v}
! What happened to the {v}
a who will repair the {v} => {h} will repair the {v}
? Who will repair the {v}
? Who repairs the {v}
? Who is going to do the work on the {v}
! Who is going to repair the {v}

newbuilding | town | v=building y=number h=person d=day
+ On {d} a new {v} opened in {n}
+ {N} opened a new {v} on {d}
+ A new {v} was opened in {n} on {d}
+ Since last {d} {n} has a new {v}
+ {N} has had its new {v} since {d}
+ It was a new {v} that {n} opened on {d}
- Since {d} {n} has had a new {v}
- It was on {d} that {n} opened its new {v}
/
+ It was built by {h}
+ {h} had drawn the plans for it
+ The builder was {h}
+ It was {h} who built it
+ The one who had the plans was {h}
- The one who built it was {h}
- {h} was the builder
/
+ The work took {y} months
+ It took {y} months to build
+ After {y} months of work everyone was glad
+ It was built in {y} months
+ The people had waited for it for {y} months
+ After {y} months people had waited long enough
- In {y} months it was built
- People had waited {y} months for it
s A new {v}, built by {h}, opened in {n} on {d}.
a what opened in {n} => A new {v} opened in {n}
? What opened in {n}
? What was built in {n}
? What is new in {n}
? What building opened in {n}
! Which building opened in {n}
a when the new {v} opened => The new {v} opened on {d}
? When did the new {v} open
? When did the {v} open
? On what day did the {v} open
! What day did the {v} open
a who built the new {v} => {h} built the new {v}
? Who built the new {v}
? Who built the {v}
! Who was the builder of the {v}
a how long it took to build the {v} => It took {y} months to build the {v}
? How long did it take to build the {v}
? How many months did the work take
! How many months did it take to build the {v}
w which town opened a new {v} => {n} opened a new {v}
? Which town opened a new {v}
? Which of the towns has a new {v}
! What town has a new {v}
"""


def parse_relations(text: str) -> list[Relation]:
    """Read the blocks above."""
    relations = []
    for block in text.strip().split("\n\n"):
        header, *lines = block.split("\n")
        name, kind, slots = (cell.strip() for cell in header.split("|"))
        relation = Relation(name, kind, dict(pair.split("=") for pair in slots.split()))
        for line in lines:
            mark, rest = line[0], line[1:].strip()
            if mark == "+":
                relation.stages[-1].append(rest)
            elif mark == "-":
                relation.held_stages[-1].append(rest)
            elif mark == "/":
                relation.stages.append([])
                relation.held_stages.append([])
            elif mark == "b":
                relation.briefs.append(rest)
            elif mark == "s":
                relation.summaries.append(rest)
            elif mark in "aw":
                unsaid, answer = rest.split(" => ")
                relation.asks.append(Ask(unsaid, answer + ".", mark == "a"))
            elif mark == "?":
                relation.asks[-1].questions.append(rest + "?")
            elif mark == "!":
                relation.asks[-1].held_questions.append(rest + "?")
            elif mark == "y":
                relation.yes_no.append(rest + "?")
            else:
                raise ValueError(f"{name}: line {line!r} begins with no known mark")
        relations.append(relation)
    return relations


RELATIONS = parse_relations(FACTS)
EVENT_RELATIONS = parse_relations(EVENTS)
