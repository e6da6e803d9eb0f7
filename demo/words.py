"""The words that the demo texts are made of, each list split into a training part and a held-out part."""

# ruff: noqa: SIM905 -- a line of words is easier to read and extend than a list of strings

from __future__ import annotations

import random
import re
import zlib

FEMALE_NAMES = (
    "Mira Anna Lena Nora Ella Ida Clara Rosa Lucy Emma Alice Grace Hannah Ruth Maya Zoe Lily Daisy Iris Olive "
    "Ivy Hazel Eva Mary Jane Kate Susan Nina Tara Leila Amara Priya Yuki Mei Ingrid Freya Astrid Greta Helga "
    "Marta Sofia Lucia Carmen Elena Paula Bella Chloe Julia Laura Molly Poppy Pearl Ruby Sally Tessa Una Vera "
    "Wanda Willa Xenia Yara Zara Abby Bonnie Cora Dora Edith Fiona Gloria Heidi Irene Joan Karen Linda Mabel "
    "Nancy Opal Penny Rita Sara Tina Ursula Violet Wendy Aisha Fatima Noor Salma Lan Hana Keiko Sana Anita "
    "Kavya Asha Nia Zuri Adele Beatrice Cecilia Diana"
).split()
MALE_NAMES = (
    "Tom Ben Sam Jack Max Leo Finn Hugo Oscar Paul Peter John Mark Luke Adam Noah Liam Owen Evan Ryan Eric "
    "Karl Hans Otto Emil Anton Felix Jonas Lukas Niklas Sven Lars Erik Olaf Bjorn Ivan Boris Dmitri Pavel "
    "Marek Jan Piotr Diego Pablo Carlos Miguel Juan Luis Marco Paolo Luca Enzo Pierre Louis Henri Jules Omar "
    "Ali Hassan Karim Tariq Ravi Arjun Vikram Rohan Kenji Hiro Taro Wei Chen Bao Kofi Kwame Jabari Tunde Abel "
    "Basil Cyril Dennis Edgar Frank George Harold Ian James Keith Leon Martin Neil Oliver Percy Quentin Ralph "
    "Simon Trevor Victor Walter Arthur Bruno Conrad Duncan"
).split()
PET_NAMES = (
    "Biscuit Pepper Shadow Coco Button Clover Ginger Muffin Patch Socks Pebble Rusty Snowy Sunny Tiger Waffles "
    "Ziggy Bramble Cinnamon Domino Fudge Honey Jasper Kiwi Lucky Maple Nutmeg Olaf Pickle Pumpkin Rocket "
    "Sparky Toffee Whiskers Acorn Bandit Captain Dusty Echo Fern Gizmo Hopper Mango Noodle Pip Smoky Teddy "
    "Velvet Willow Dot"
).split()
REAL_PLACES = (
    "London,Paris,Rome,Oslo,Berlin,Madrid,Lisbon,Dublin,Vienna,Prague,Athens,Cairo,Delhi,Tokyo,Lima,Boston,"
    "Denver,Toronto,Sydney,Bergen,Hamburg,Geneva,Naples,Porto,Bristol,Oxford,York,Leeds,Bath,Dover,Cork,Galway,"
    "Turin,Seville,Lyon,Nice,Ghent,Riga,Vilnius,Tallinn,Helsinki,Krakow,Zagreb,Nairobi,Accra,Lagos,Quito,"
    "Bogota,Havana,Austin,Portland,Seattle,Salem,Dallas,Kyoto,Osaka,Hanoi,Manila,Mumbai,Madras"
).split(",")

_NAME_STARTS = (
    "Al An Ar Ba Bel Bri Ca Cal Cor Da Del Dor Ed El Em Er Fa Fen Fi Ga Gal Gor Ha Hel Il In Is Ja Jo Ka Kel "
    "Kor La Lo Lu Ma Mel Mi Mor Na Ne Nor O Or Pa Per Pi Qui Ra Ri Ro Sa Se Sil So Ta Tel Ti Tor U Va Vel Vi "
    "Wil Ya Yor Za Ze Zo Bra Cle Dra Fre Gri Jul Kri Lin Mar Oli Pre Ste Tri Vin"
).split()
_NAME_MIDDLES = (
    "a e i o u la le li lo ma mi na ni no ra ri ro sa se si ta te ti to va vi da de di do ba be ka ke ki ga go "
    "an en in or ar el il ol"
).split()
_FEMALE_ENDS = "a na ra la ia ina elle ette ira ena essa isa ya lyn ora beth wen".split()
_MALE_ENDS = "n r l s d k o us in an or ek im ard bert mond ric ton vin ius".split()
_PLACE_STARTS = (
    "Ash Bar Bex Birch Black Brad Bright Brook Cald Car Cliff Cold Cran Dal Deep Der Dun East El Fair Fern Fox "
    "Glen Gold Gran Green Ham Har Haw Hay Hill Hol Kel Kings Lang Lin Long Mar Mead Mid Mill Mor Nether New "
    "North Oak Old Pen Pine Port Raven Red Rock Rose Sal Sand Shel Silver South Stan Stone Strat Sun Thorn Tor "
    "Up Wal War Wat West Whit Wil Win Wood Wren Yar"
).split()
_PLACE_ENDS = (
    "ford ton ham ley bury field wick worth mouth port dale wood bridge brook stead cliff combe den hurst stow "
    "minster borough haven well gate land more ridge side water"
).split()
_SYLLABLES = (
    "ba bo da dor el fen ga gim ha in jo ka kor la lim lo ma min mo na nor ol pa pim ra rin ro sa sel ta tor "
    "va vel wim za zor"
).split()

COLOURS = "red blue green yellow white black brown grey orange pink purple silver golden".split()
SIZES = "small big little old new tiny heavy shiny wooden soft round pretty bright".split()
OBJECTS = (
    "kite key ring hat scarf coat book umbrella basket lantern drum flute watch clock bag bicycle ball doll "
    "map coin letter box cup teapot kettle pencil brush mirror necklace bracelet button glove boot shoe sock "
    "blanket pillow ladder hammer shovel bucket rope bell whistle candle lamp vase plate spoon knife camera "
    "radio compass telescope puzzle toy train boat cart chair table bench rug jacket sweater ribbon purse "
    "wallet notebook diary picture painting statue feather shell stone marble jar bottle"
).split()
PETS = (
    "dog cat rabbit parrot pony hamster goat duck hen turtle mouse canary goldfish lizard donkey sheep pig kitten puppy"
).split()
FOODS = (
    "soup,bread,apples,pancakes,cheese,rice,noodles,honey,carrots,cherries,plums,grapes,fish,cake,potatoes,"
    "beans,porridge,pears,strawberries,mushrooms,pumpkin pie,tomato soup,apple pie,ice cream,peas,chocolate,"
    "lemon cake,dumplings,corn,nuts"
).split(",")
JOBS = (
    "baker,teacher,doctor,farmer,sailor,painter,nurse,carpenter,gardener,fisherman,shepherd,tailor,miller,"
    "blacksmith,cook,musician,librarian,postman,driver,pilot,engineer,builder,clockmaker,shoemaker,potter,"
    "weaver,beekeeper,dentist,photographer,writer,singer,dancer,judge,lawyer,florist,butcher,plumber,mechanic,"
    "scientist,vet,guard,waiter,actor,barber,jeweller,firefighter"
).split(",")
WORKPLACES = (
    "bakery,library,school,hospital,harbour,museum,market,post office,train station,hotel,farm,theatre,factory,"
    "mill,garden centre,bookshop,zoo,airport,bank,cafe,lighthouse,town hall,flower shop,toy shop,castle,"
    "workshop"
).split(",")
HOBBIES = (
    "painting,swimming,reading,dancing,fishing,singing,cooking,climbing,running,sewing,knitting,skating,"
    "sailing,drawing,gardening,chess,cycling,hiking,baking,photography,writing poems,watching birds,"
    "flying kites,collecting stamps,collecting shells,riding horses,playing cards,making pots,telling stories,"
    "building model ships"
).split(",")
INSTRUMENTS = "piano violin flute guitar drum harp trumpet cello clarinet accordion banjo organ".split()
SUBJECTS = ("history,music,science,mathematics,art,geography,reading,biology,French,Spanish,Latin,poetry").split(",")
LANGUAGES = (
    "French Spanish German Italian Greek Latin Polish Danish Turkish Arabic Chinese Hindi Dutch Swedish"
).split()
SEASONS = "spring summer autumn winter".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
VEHICLES = "train,bus,boat,car,bicycle,ship,plane,tram,horse,ferry,taxi,truck".split(",")
HOURS = "five six seven eight nine ten eleven twelve".split()
NUMBERS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen twenty "
    "thirty forty fifty"
).split()
RELATIVES = "brother,sister,uncle,aunt,cousin,grandmother,grandfather,neighbour,teacher".split(",")
SPOTS = (
    "near the river,in the park,at the market,on the beach,in the forest,behind the church,under the bridge,"
    "by the lake,at the station,in the garden,on the hill,next to the well,in the old barn,at the harbour,"
    "in the library,by the road,in the meadow,on the train,near the mill,outside the school,in the square,"
    "by the fountain,at the fair,in the kitchen,behind the house,on the stairs,in the attic,under the old oak,"
    "near the castle,on the island"
).split(",")
RIVERS = "river lake forest mountain canal beach valley waterfall cave spring".split()
FAMOUS = (
    "its cheese,its bridges,its flower market,its old clock,its apple trees,its glass,its boats,its music,"
    "its stone tower,its bread,its gardens,its lace,its honey,its wool,its red roofs,its pottery,its castle,"
    "its windmills,its roses,its tall ships"
).split(",")
BUILDINGS = (
    "bridge,library,school,church,tower,harbour,museum,station,market hall,mill,lighthouse,theatre,hospital,"
    "well,town hall,garden,swimming pool,playground"
).split(",")
GOODS = (
    "bread,flowers,books,shoes,hats,toys,tea,cheese,lamps,paint,clocks,candles,maps,honey,soap,boots,kites,"
    "fruit,seeds,paper,carpets,pots,violins,bicycles,buttons,coats"
).split(",")
SHOP_ADJECTIVES = (
    "Blue Red Golden Silver Copper Green Little Old Happy Merry Crooked Lucky Sleepy White Black Quiet Dancing"
).split()
SHOP_NOUNS = (
    "Kettle Lantern Goose Anchor Fox Owl Apple Rose Button Spoon Star Moon Whale Cat Bell Crown Candle Swan "
    "Hare Oak Key Teapot Wheel Pear"
).split()
RESCUED = ("kitten puppy lamb duck owl fox hedgehog swan rabbit seal goat foal squirrel crow deer swallow").split()
PLANTS = (
    "apple tree,rose bush,oak,cherry tree,pear tree,sunflower,lemon tree,vine,plum tree,pumpkin,lavender bush,maple"
).split(",")
MADE = (
    "boat,kite,table,bookshelf,bird house,sledge,chair,cart,tree house,raft,lantern,bridge,toy train,clock,"
    "robot,rocking horse,fence,oven,snowman,quilt"
).split(",")
COOKED = ("cake,soup,pie,stew,loaf of bread,pizza,salad,pudding,omelette,tart,batch of biscuits,pot of jam").split(",")
CONTESTS = (
    "running race,chess match,singing contest,baking contest,boat race,swimming race,drawing contest,"
    "dance contest,spelling contest,kite contest,bicycle race,fishing contest,poetry contest,garden contest"
).split(",")
PRIZES = (
    "gold medal,silver cup,new bicycle,big cake,book,blue ribbon,basket of fruit,bag of coins,golden watch,"
    "ticket to the sea"
).split(",")
SKILLS = (
    "swim,ski,sail,dance,bake bread,ride a horse,play chess,ride a bicycle,knit,juggle,skate,paint,cook,"
    "speak French,drive,sew"
).split(",")
WEATHERS = "storm,snowstorm,thunderstorm,flood,strong wind,fire,heavy storm".split(",")
FEARS = "spiders dogs bees ghosts snakes mice horses geese cats storms bats frogs cows wolves crabs".split()
HERDS = "sheep goats cows hens ducks horses geese pigs rabbits bees donkeys ponies".split()

STORY_ADJECTIVES = (
    "brave little small tiny old young lonely clever kind curious shy happy sleepy proud gentle quiet silly "
    "lost hungry cheerful careful lazy magic golden silver red blue green rusty wooden forgotten patient timid "
    "stubborn friendly wise merry"
).split()
STORY_ANIMALS = (
    "fox rabbit bear mouse owl dragon cat dog duck frog hedgehog squirrel wolf lion elephant whale turtle goat "
    "horse donkey penguin sparrow crow robin snail bee ant butterfly spider tiger monkey deer sheep goose swan "
    "seal otter beaver bat mole giraffe camel pony kitten puppy hen rooster dolphin fish crab octopus parrot "
    "caterpillar ladybird badger raccoon kangaroo koala moose toad lizard unicorn"
).split()
STORY_THINGS = (
    "boat train robot lantern kite clock lighthouse cloud star snowman tree river teapot bicycle balloon lamp "
    "bell umbrella ship car bus tractor toy doll puppet drum piano violin book pencil candle mirror moon "
    "raindrop snowflake leaf seed stone bridge windmill house tower castle chair spoon kettle key coin button "
    "boot hat scarf rocket satellite truck plane wagon sailboat tugboat scarecrow statue pumpkin acorn mountain"
).split()
STORY_PEOPLE = (
    "girl boy king queen princess prince baker sailor farmer shepherd wizard witch giant fisherman knight "
    "painter clockmaker pirate gardener miller tailor teacher grandmother grandfather piper inventor cook "
    "astronaut juggler musician poet shoemaker captain woodcutter"
).split()
STORY_PLACES = (
    "village,harbour,island,forest,garden,lighthouse,castle,farm,mill,library,valley,bakery,market,museum,"
    "school,meadow,lake,mountain hut,railway station,bookshop"
).split(",")


def is_held_out(word: str, one_in: int = 8) -> bool:
    """Say whether a word belongs to the held-out part: a fixed property of its letters, so the parts never overlap."""
    return zlib.crc32(word.lower().encode()) % one_in == 0


def part(words: list[str], held_out: bool, one_in: int = 8) -> list[str]:
    """Keep one part of a list."""
    return [word for word in words if is_held_out(word, one_in) == held_out]


def _draw(rng: random.Random, held_out: bool, candidate: object) -> str:
    while True:
        word = str(candidate())  # type: ignore[operator]
        if is_held_out(word) == held_out:
            return word


def _made_up_name(rng: random.Random, female: bool) -> str:
    middle = "".join(rng.choice(_NAME_MIDDLES) for _ in range(rng.choice((0, 1, 1, 2))))
    name = rng.choice(_NAME_STARTS) + middle + rng.choice(_FEMALE_ENDS if female else _MALE_ENDS)
    return re.sub(r"([aeiou])[aeiou]+", r"\1", name)


def person_name(rng: random.Random, held_out: bool, female: bool) -> str:
    """Draw a first name: a third of them real, the others put together from syllables."""
    listed = FEMALE_NAMES if female else MALE_NAMES
    real = rng.random() < 0.35
    return _draw(rng, held_out, lambda: rng.choice(listed) if real else _made_up_name(rng, female))


def place_name(rng: random.Random, held_out: bool) -> str:
    """Draw a town: a fifth of them real, the others put together."""
    kind = rng.random()

    def candidate() -> str:
        if kind < 0.2:
            return rng.choice(REAL_PLACES)
        if kind < 0.8:
            return rng.choice(_PLACE_STARTS) + rng.choice(_PLACE_ENDS)
        return _made_up_name(rng, rng.random() < 0.5)

    return _draw(rng, held_out, candidate)


def pet_name(rng: random.Random, held_out: bool) -> str:
    """Draw the name of an animal."""
    real = rng.random() < 0.6
    return _draw(rng, held_out, lambda: rng.choice(PET_NAMES) if real else _made_up_name(rng, rng.random() < 0.5))


def made_up_word(rng: random.Random) -> str:
    """Make a word that no dictionary has, so that copying does not lean on known words."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3))))
