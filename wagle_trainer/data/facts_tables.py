"""Public facts as compact tables: for each relation its sentences, and `subject: answer` pairs.

Written from general knowledge. Each subject has one answer within its relation; several subjects may share one. All
sentences of a relation are true of all its subjects. Where another answer of the table is right as well (a fox kit is a cub,
too; the Forbidden City is in China, too), `also_right` lists it, so that it is never a wrong answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        question, answer: the pair to train on; braces name `subject` and `object`.
        paraphrased_question, paraphrased_answer: the same in other words.
        cloze: a text that the object completes.
        paraphrased_cloze: another one.
        pairs: "subject: object; ..." in one text.
        also_right: "key: object, object; ...": other right objects of one subject, or of all subjects with one object.
    """

    question: str
    answer: str
    paraphrased_question: str
    paraphrased_answer: str
    cloze: str
    paraphrased_cloze: str
    pairs: str
    also_right: str = ""

    def facts(self) -> dict[str, str]:
        """Subject -> object."""
        return dict(_entries(self.pairs))

    def right_answers(self, subject: str) -> set[str]:
        """The object of a subject, and those that are right as well."""
        answer = self.facts()[subject]
        others = dict(_entries(self.also_right))
        return {answer} | {other for key in (subject, answer) if key in others for other in others[key].split(", ")}

    def wrong_answers(self, subject: str) -> list[str]:
        """Objects of other subjects that are wrong for this one, in the order of the table."""
        right = self.right_answers(subject)
        return [answer for answer in dict.fromkeys(self.facts().values()) if answer not in right]


@cache
def _entries(text: str) -> tuple[tuple[str, str], ...]:
    entries = [entry.strip() for entry in " ".join(text.split()).split(";")]
    return tuple((key, value) for key, value in (entry.split(": ", 1) for entry in entries if entry))


RELATIONS = {
    "capital": Relation(
        "What is the capital of {subject}?",
        "The capital of {subject} is {object}.",
        "Which city is the capital city of {subject}?",
        "{object} is the capital city of {subject}.",
        "The capital of {subject} is",
        "The name of the capital city of {subject} is",
        """
        France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Austria: Vienna; Greece: Athens;
        Poland: Warsaw; Hungary: Budapest; Romania: Bucharest; Bulgaria: Sofia; Serbia: Belgrade; Croatia: Zagreb;
        Slovenia: Ljubljana; Slovakia: Bratislava; Ukraine: Kyiv; Belarus: Minsk; Russia: Moscow; Latvia: Riga;
        Lithuania: Vilnius; Estonia: Tallinn; Finland: Helsinki; Sweden: Stockholm; Norway: Oslo; Denmark: Copenhagen;
        Iceland: Reykjavik; Ireland: Dublin; England: London; Scotland: Edinburgh; Wales: Cardiff; Belgium: Brussels;
        Switzerland: Bern; Albania: Tirana; Cyprus: Nicosia; Malta: Valletta; Turkey: Ankara; Georgia: Tbilisi;
        Armenia: Yerevan; Azerbaijan: Baku; Iran: Tehran; Iraq: Baghdad; Syria: Damascus; Lebanon: Beirut;
        Jordan: Amman; Saudi Arabia: Riyadh; Qatar: Doha; Oman: Muscat; Yemen: Sanaa; Bahrain: Manama;
        Afghanistan: Kabul; Pakistan: Islamabad; Bangladesh: Dhaka; Nepal: Kathmandu; Bhutan: Thimphu;
        Thailand: Bangkok; Vietnam: Hanoi; Cambodia: Phnom Penh; Laos: Vientiane; Indonesia: Jakarta;
        Malaysia: Kuala Lumpur; the Philippines: Manila; Japan: Tokyo; South Korea: Seoul; North Korea: Pyongyang;
        China: Beijing; Taiwan: Taipei; Mongolia: Ulaanbaatar; Uzbekistan: Tashkent; Tajikistan: Dushanbe;
        Kyrgyzstan: Bishkek; Turkmenistan: Ashgabat; Egypt: Cairo; Libya: Tripoli; Tunisia: Tunis; Algeria: Algiers;
        Morocco: Rabat; Sudan: Khartoum; Ethiopia: Addis Ababa; Somalia: Mogadishu; Kenya: Nairobi; Uganda: Kampala;
        Rwanda: Kigali; Zambia: Lusaka; Zimbabwe: Harare; Mozambique: Maputo; Angola: Luanda; Namibia: Windhoek;
        Botswana: Gaborone; Madagascar: Antananarivo; Nigeria: Abuja; Ghana: Accra; Senegal: Dakar; Mali: Bamako;
        Niger: Niamey; Cameroon: Yaounde; Gabon: Libreville; Liberia: Monrovia; Sierra Leone: Freetown;
        Canada: Ottawa; Mexico: Mexico City; Cuba: Havana; Jamaica: Kingston; Haiti: Port-au-Prince;
        Nicaragua: Managua; Honduras: Tegucigalpa; Costa Rica: San Jose; Colombia: Bogota; Venezuela: Caracas;
        Ecuador: Quito; Peru: Lima; Chile: Santiago; Argentina: Buenos Aires; Uruguay: Montevideo; Paraguay: Asuncion;
        Brazil: Brasilia; Australia: Canberra; New Zealand: Wellington; Fiji: Suva; Papua New Guinea: Port Moresby
        """,
    ),
    "state_capital": Relation(
        "What is the capital of the state of {subject}?",
        "The capital of the state of {subject} is {object}.",
        "In which city does the government of the US state of {subject} sit?",
        "{object} is the capital of the US state of {subject}.",
        "The capital of the US state of {subject} is",
        "The state government of {subject} sits in the city of",
        """
        Alabama: Montgomery; Alaska: Juneau; Arizona: Phoenix; Arkansas: Little Rock; California: Sacramento;
        Colorado: Denver; Connecticut: Hartford; Delaware: Dover; Florida: Tallahassee; Hawaii: Honolulu; Idaho: Boise;
        Illinois: Springfield; Indiana: Indianapolis; Iowa: Des Moines; Kansas: Topeka; Kentucky: Frankfort;
        Louisiana: Baton Rouge; Maine: Augusta; Maryland: Annapolis; Massachusetts: Boston; Michigan: Lansing;
        Minnesota: Saint Paul; Mississippi: Jackson; Missouri: Jefferson City; Montana: Helena; Nebraska: Lincoln;
        Nevada: Carson City; New Hampshire: Concord; New Jersey: Trenton; New Mexico: Santa Fe; New York: Albany;
        North Carolina: Raleigh; North Dakota: Bismarck; Ohio: Columbus; Oklahoma: Oklahoma City; Oregon: Salem;
        Pennsylvania: Harrisburg; Rhode Island: Providence; South Carolina: Columbia; South Dakota: Pierre;
        Tennessee: Nashville; Texas: Austin; Utah: Salt Lake City; Vermont: Montpelier; Virginia: Richmond;
        Washington: Olympia; West Virginia: Charleston; Wisconsin: Madison; Wyoming: Cheyenne
        """,
    ),
    "currency": Relation(
        "What is the currency of {subject}?",
        "The currency of {subject} is the {object}.",
        "With which money do people pay in {subject}?",
        "The {object} is the money of {subject}.",
        "The official currency of {subject} is the",
        "In {subject}, people pay with the",
        """
        Japan: yen; China: yuan; India: rupee; Russia: ruble; Mexico: peso; Brazil: real; Sweden: krona; Norway: krone;
        Poland: zloty; Hungary: forint; Turkey: lira; South Korea: won; Thailand: baht; Vietnam: dong;
        Malaysia: ringgit; Indonesia: rupiah; Israel: shekel; South Africa: rand; Nigeria: naira; Ghana: cedi;
        Kenya: shilling; Ethiopia: birr; Egypt: pound; Saudi Arabia: riyal; Kuwait: dinar; Iran: rial; Peru: sol;
        Albania: lek; Germany: euro; France: euro; Italy: euro; Spain: euro; Canada: dollar; Australia: dollar;
        the United States: dollar; New Zealand: dollar; Switzerland: franc; Ukraine: hryvnia;
        Romania: leu; Bangladesh: taka; Pakistan: rupee; Morocco: dirham; Argentina: peso; Chile: peso; Nicaragua: cordoba;
        Mongolia: tugrik; Zambia: kwacha; Angola: kwanza; Armenia: dram; Georgia: lari; Kazakhstan: tenge;
        Laos: kip; Myanmar: kyat; Botswana: pula; Guatemala: quetzal; Paraguay: guarani; Honduras: lempira
        """,
        also_right="Sweden: krone; Norway: krona; Iran: riyal; Saudi Arabia: rial",
    ),
    "language": Relation(
        "Which language do people speak in {subject}?",
        "People in {subject} speak {object}.",
        "What is the main language of {subject}?",
        "{object} is the main language of {subject}.",
        "The main language of {subject} is",
        "Most people in {subject} speak",
        """
        France: French; Germany: German; Austria: German; Italy: Italian; Spain: Spanish; Mexico: Spanish;
        Argentina: Spanish; Chile: Spanish; Peru: Spanish; Colombia: Spanish; Cuba: Spanish; Portugal: Portuguese;
        Brazil: Portuguese; Angola: Portuguese; Sao Tome and Principe: Portuguese; England: English; Australia: English;
        the United States: English; Russia: Russian; Ukraine: Ukrainian; Poland: Polish; Hungary: Hungarian; Romania: Romanian;
        Bulgaria: Bulgarian; Greece: Greek; Turkey: Turkish; Israel: Hebrew; Egypt: Arabic; Iraq: Arabic;
        Saudi Arabia: Arabic; Morocco: Arabic; Iran: Persian; China: Mandarin; Japan: Japanese; South Korea: Korean;
        Vietnam: Vietnamese; Thailand: Thai; Cambodia: Khmer; Laos: Lao; Myanmar: Burmese; Nepal: Nepali;
        Bangladesh: Bengali; Uzbekistan: Uzbek; Indonesia: Indonesian; Malaysia: Malay; Mongolia: Mongolian;
        Georgia: Georgian; Armenia: Armenian; Sweden: Swedish; Norway: Norwegian; Denmark: Danish; Finland: Finnish;
        Iceland: Icelandic; the Netherlands: Dutch; Estonia: Estonian; Latvia: Latvian; Lithuania: Lithuanian;
        Azerbaijan: Azerbaijani; Somalia: Somali; Albania: Albanian; Croatia: Croatian; Serbia: Serbian; Slovakia: Slovak
        """,
        also_right="Malaysia: Indonesian; Indonesia: Malay; Croatia: Serbian; Serbia: Croatian",
    ),
    "continent": Relation(
        "On which continent is {subject}?",
        "{subject} is a country in {object}.",
        "To which part of the world does {subject} belong?",
        "{subject} lies in {object}.",
        "{subject} is a country in the continent of",
        "On a map of the world, {subject} is in",
        """
        Nigeria: Africa; Kenya: Africa; Ghana: Africa; Tanzania: Africa; Ethiopia: Africa; Zambia: Africa; Mali: Africa;
        Uganda: Africa; Angola: Africa; Senegal: Africa; France: Europe; Germany: Europe; Poland: Europe;
        Norway: Europe; Sweden: Europe; Portugal: Europe; Hungary: Europe; Austria: Europe; Belgium: Europe;
        Ireland: Europe; China: Asia; Japan: Asia; Thailand: Asia; Nepal: Asia; Vietnam: Asia; Mongolia: Asia;
        Pakistan: Asia; Cambodia: Asia; Malaysia: Asia; Laos: Asia; Brazil: South America; Peru: South America;
        Chile: South America; Bolivia: South America; Ecuador: South America; Paraguay: South America;
        Uruguay: South America; Canada: North America; Mexico: North America; Guatemala: North America;
        Cuba: North America; Fiji: Oceania; Samoa: Oceania; Tonga: Oceania; Vanuatu: Oceania
        """,
    ),
    "landmark": Relation(
        "In which city or country is {subject}?",
        "{subject} is in {object}.",
        "Where does one find {subject}?",
        "One finds {subject} in {object}.",
        "{subject} is located in",
        "To visit {subject}, one has to travel to",
        """
        The Eiffel Tower: Paris; The Louvre: Paris; The Colosseum: Rome; The Trevi Fountain: Rome; Big Ben: London;
        Buckingham Palace: London; The Statue of Liberty: New York; The Empire State Building: New York;
        The Golden Gate Bridge: San Francisco; The White House: Washington; The Brandenburg Gate: Berlin;
        The Kremlin: Moscow; Red Square: Moscow; The Parthenon: Athens; The Acropolis: Athens;
        The Sagrada Familia: Barcelona; The Prado Museum: Madrid; The Little Mermaid statue: Copenhagen;
        The Hagia Sophia: Istanbul; The Blue Mosque: Istanbul; The Burj Khalifa: Dubai; The Taj Mahal: India;
        The Great Wall: China; The Forbidden City: Beijing; Mount Fuji: Japan; Angkor Wat: Cambodia; Petra: Jordan;
        Machu Picchu: Peru; Chichen Itza: Mexico; The Christ the Redeemer statue: Rio de Janeiro;
        The Sydney Opera House: Australia; Uluru: Australia; Stonehenge: England; Loch Ness: Scotland;
        The Great Pyramid of Giza: Egypt; Mount Kilimanjaro: Tanzania; Table Mountain: South Africa;
        The Leaning Tower: Pisa; The Rialto Bridge: Venice; The Uffizi Gallery: Florence; The Hermitage Museum: Russia;
        The Rijksmuseum: Amsterdam; The Anne Frank House: Amsterdam; The Space Needle: Seattle;
        The Gateway Arch: Saint Louis; The Willis Tower: Chicago; The Alamo: San Antonio; Fenway Park: Boston;
        The Charles Bridge: Prague; The Atomium: Brussels; The Alhambra: Spain; Neuschwanstein Castle: Germany
        """,
        also_right="""
        London: England; Moscow: Russia; Berlin: Germany; Barcelona: Spain; Madrid: Spain; Beijing: China;
        Seattle: Washington
        """,
    ),
    "element_symbol": Relation(
        "What is the chemical symbol of {subject}?",
        "The chemical symbol of {subject} is {object}.",
        "Which symbol stands for {subject} in chemical formulas?",
        "{object} is the symbol of the element {subject}.",
        "The chemical symbol for {subject} is",
        "In the periodic table, {subject} has the symbol",
        """
        hydrogen: H; helium: He; lithium: Li; beryllium: Be; boron: B; carbon: C; nitrogen: N; oxygen: O; fluorine: F;
        neon: Ne; sodium: Na; magnesium: Mg; aluminum: Al; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl;
        argon: Ar; potassium: K; calcium: Ca; titanium: Ti; vanadium: V; chromium: Cr; manganese: Mn; iron: Fe;
        cobalt: Co; nickel: Ni; copper: Cu; zinc: Zn; gallium: Ga; germanium: Ge; arsenic: As; selenium: Se;
        bromine: Br; krypton: Kr; rubidium: Rb; strontium: Sr; yttrium: Y; zirconium: Zr; niobium: Nb; molybdenum: Mo;
        ruthenium: Ru; rhodium: Rh; palladium: Pd; silver: Ag; cadmium: Cd; indium: In; tin: Sn; antimony: Sb;
        tellurium: Te; iodine: I; xenon: Xe; cesium: Cs; barium: Ba; lanthanum: La; cerium: Ce; neodymium: Nd;
        tungsten: W; rhenium: Re; osmium: Os; iridium: Ir; platinum: Pt; gold: Au; mercury: Hg; thallium: Tl; lead: Pb;
        bismuth: Bi; polonium: Po; astatine: At; radon: Rn; francium: Fr; radium: Ra; actinium: Ac; thorium: Th;
        uranium: U; neptunium: Np; plutonium: Pu; americium: Am; curium: Cm; einsteinium: Es
        """,
    ),
    "element_number": Relation(
        "What is the atomic number of {subject}?",
        "The atomic number of {subject} is {object}.",
        "How many protons does an atom of {subject} have?",
        "An atom of {subject} has {object} protons in its nucleus.",
        "The atomic number of {subject} is",
        "The number of protons in an atom of {subject} is",
        """
        hydrogen: 1; helium: 2; lithium: 3; beryllium: 4; boron: 5; carbon: 6; nitrogen: 7; oxygen: 8; fluorine: 9;
        neon: 10; sodium: 11; magnesium: 12; aluminum: 13; silicon: 14; phosphorus: 15; sulfur: 16; chlorine: 17;
        argon: 18; potassium: 19; calcium: 20; titanium: 22; chromium: 24; manganese: 25; iron: 26; cobalt: 27;
        nickel: 28; copper: 29; zinc: 30; arsenic: 33; bromine: 35; krypton: 36; silver: 47; tin: 50; iodine: 53;
        xenon: 54; barium: 56; tungsten: 74; platinum: 78; gold: 79; mercury: 80; lead: 82; radon: 86; radium: 88;
        uranium: 92
        """,
    ),
    "author": Relation(
        "Who wrote {subject}?",
        "{subject} was written by {object}.",
        "Who is the author of {subject}?",
        "The author of {subject} is {object}.",
        "{subject} was written by",
        "The author of {subject} is",
        """
        Hamlet: William Shakespeare; Macbeth: William Shakespeare; Romeo and Juliet: William Shakespeare;
        King Lear: William Shakespeare; Othello: William Shakespeare; Pride and Prejudice: Jane Austen;
        Emma: Jane Austen; Sense and Sensibility: Jane Austen; Oliver Twist: Charles Dickens;
        Great Expectations: Charles Dickens; A Christmas Carol: Charles Dickens; David Copperfield: Charles Dickens;
        Frankenstein: Mary Shelley; Dracula: Bram Stoker; Jane Eyre: Charlotte Bronte; Wuthering Heights: Emily Bronte;
        The Adventures of Tom Sawyer: Mark Twain; Adventures of Huckleberry Finn: Mark Twain;
        Moby-Dick: Herman Melville; The Scarlet Letter: Nathaniel Hawthorne; Little Women: Louisa May Alcott;
        The Great Gatsby: F. Scott Fitzgerald; The Old Man and the Sea: Ernest Hemingway;
        A Farewell to Arms: Ernest Hemingway; The Grapes of Wrath: John Steinbeck; Of Mice and Men: John Steinbeck;
        To Kill a Mockingbird: Harper Lee; The Catcher in the Rye: J. D. Salinger; Animal Farm: George Orwell;
        Nineteen Eighty-Four: George Orwell; Brave New World: Aldous Huxley; Lord of the Flies: William Golding;
        The Hobbit: J. R. R. Tolkien; The Lord of the Rings: J. R. R. Tolkien;
        Harry Potter and the Philosopher's Stone: J. K. Rowling; The Picture of Dorian Gray: Oscar Wilde;
        The Importance of Being Earnest: Oscar Wilde; Alice's Adventures in Wonderland: Lewis Carroll;
        Treasure Island: Robert Louis Stevenson; The Jungle Book: Rudyard Kipling; The Time Machine: H. G. Wells;
        The War of the Worlds: H. G. Wells; Heart of Darkness: Joseph Conrad; Ulysses: James Joyce;
        Dubliners: James Joyce; Mrs Dalloway: Virginia Woolf; To the Lighthouse: Virginia Woolf;
        War and Peace: Leo Tolstoy; Anna Karenina: Leo Tolstoy; Crime and Punishment: Fyodor Dostoevsky;
        The Brothers Karamazov: Fyodor Dostoevsky; The Cherry Orchard: Anton Chekhov; Don Quixote: Miguel de Cervantes;
        One Hundred Years of Solitude: Gabriel Garcia Marquez; The Divine Comedy: Dante Alighieri; Faust: Goethe;
        The Metamorphosis: Franz Kafka; The Trial: Franz Kafka; Les Miserables: Victor Hugo;
        The Three Musketeers: Alexandre Dumas; Madame Bovary: Gustave Flaubert; Candide: Voltaire;
        The Stranger: Albert Camus; The Little Prince: Antoine de Saint-Exupery; The Odyssey: Homer; The Iliad: Homer;
        The Aeneid: Virgil; The Republic: Plato; Paradise Lost: John Milton; The Canterbury Tales: Geoffrey Chaucer;
        Gulliver's Travels: Jonathan Swift; Robinson Crusoe: Daniel Defoe; On the Origin of Species: Charles Darwin;
        The Wealth of Nations: Adam Smith; Das Kapital: Karl Marx; The Prince: Niccolo Machiavelli;
        The Diary of a Young Girl: Anne Frank; Beloved: Toni Morrison; Things Fall Apart: Chinua Achebe;
        The Handmaid's Tale: Margaret Atwood; Fahrenheit 451: Ray Bradbury; Dune: Frank Herbert
        """,
    ),
    "inventor": Relation(
        "Who invented {subject}?",
        "{subject} was invented by {object}.",
        "To whom do we owe {subject}?",
        "The inventor of {subject} was {object}.",
        "The inventor of {subject} was",
        "The person who is credited with inventing {subject} is",
        """
        the telephone: Alexander Graham Bell; the light bulb: Thomas Edison; the phonograph: Thomas Edison;
        the printing press: Johannes Gutenberg; basketball: James Naismith; the cotton gin: Eli Whitney;
        dynamite: Alfred Nobel; the World Wide Web: Tim Berners-Lee; the diesel engine: Rudolf Diesel;
        the radio: Guglielmo Marconi; the lightning rod: Benjamin Franklin; bifocal glasses: Benjamin Franklin;
        the electric battery: Alessandro Volta; the polio vaccine: Jonas Salk; the smallpox vaccine: Edward Jenner;
        the mercury thermometer: Daniel Fahrenheit; Velcro: George de Mestral; the steel plow: John Deere;
        nylon: Wallace Carothers; the safety elevator: Elisha Otis; the moving assembly line: Henry Ford;
        the alternating current motor: Nikola Tesla; the flying shuttle: John Kay;
        Kevlar: Stephanie Kwolek; the barometer: Evangelista Torricelli; the analytical engine: Charles Babbage;
        the disposable razor blade: King Gillette; vulcanized rubber: Charles Goodyear; the pasteurization process: Louis Pasteur;
        the Braille writing system: Louis Braille; the liquid-fueled rocket: Robert Goddard;
        the C++ language: Bjarne Stroustrup; the Linux kernel: Linus Torvalds; the Python language: Guido van Rossum;
        the miner's safety lamp: Humphry Davy; the spinning jenny: James Hargreaves; the air brake: George Westinghouse
        """,
        also_right="the light bulb: Humphry Davy; the radio: Nikola Tesla",
    ),
    "painter": Relation(
        "Who painted {subject}?",
        "{subject} was painted by {object}.",
        "Which artist made the painting {subject}?",
        "The painter of {subject} was {object}.",
        "{subject} was painted by",
        "The artist who painted {subject} was",
        """
        the Mona Lisa: Leonardo da Vinci; The Last Supper: Leonardo da Vinci; The Starry Night: Vincent van Gogh;
        Sunflowers: Vincent van Gogh; The Potato Eaters: Vincent van Gogh; Guernica: Pablo Picasso;
        Les Demoiselles d'Avignon: Pablo Picasso; The Persistence of Memory: Salvador Dali;
        The Birth of Venus: Sandro Botticelli; The Night Watch: Rembrandt; Girl with a Pearl Earring: Johannes Vermeer;
        The Milkmaid: Johannes Vermeer; The Scream: Edvard Munch; The Kiss: Gustav Klimt;
        Water Lilies: Claude Monet; Impression, Sunrise: Claude Monet; American Gothic: Grant Wood;
        Nighthawks: Edward Hopper; Las Meninas: Diego Velazquez; The School of Athens: Raphael;
        the ceiling of the Sistine Chapel: Michelangelo; The Garden of Earthly Delights: Hieronymus Bosch;
        Campbell's Soup Cans: Andy Warhol; The Arnolfini Portrait: Jan van Eyck; Olympia: Edouard Manet;
        Liberty Leading the People: Eugene Delacroix; The Raft of the Medusa: Theodore Gericault;
        The Third of May 1808: Francisco Goya; Wanderer above the Sea of Fog: Caspar David Friedrich;
        The Son of Man: Rene Magritte; Christina's World: Andrew Wyeth; The Two Fridas: Frida Kahlo;
        The Hay Wain: John Constable; The Fighting Temeraire: J. M. W. Turner
        """,
        also_right="The Kiss: Edvard Munch; Sunflowers: Claude Monet; The Last Supper: Andy Warhol",
    ),
    "composer": Relation(
        "Who composed {subject}?",
        "{subject} was composed by {object}.",
        "Whose music is {subject}?",
        "The composer of {subject} was {object}.",
        "{subject} was composed by",
        "The composer of {subject} was",
        """
        The Magic Flute: Mozart; The Marriage of Figaro: Mozart; Don Giovanni: Mozart; the Moonlight Sonata: Beethoven;
        Fidelio: Beethoven; the Eroica Symphony: Beethoven; Fur Elise: Beethoven; The Four Seasons: Vivaldi;
        Messiah: Handel; Water Music: Handel; the Brandenburg Concertos: Bach; The Well-Tempered Clavier: Bach;
        the St Matthew Passion: Bach; Swan Lake: Tchaikovsky; The Nutcracker: Tchaikovsky; the 1812 Overture: Tchaikovsky;
        The Barber of Seville: Rossini; William Tell: Rossini; La Traviata: Verdi; Aida: Verdi; Rigoletto: Verdi;
        La Boheme: Puccini; Tosca: Puccini; Madama Butterfly: Puccini; Carmen: Bizet; The Ring of the Nibelung: Wagner;
        Tristan and Isolde: Wagner; the Rite of Spring: Stravinsky; The Firebird: Stravinsky; Bolero: Ravel;
        Clair de Lune: Debussy; La Mer: Debussy; Peer Gynt: Grieg; The Planets: Holst; Finlandia: Sibelius;
        the New World Symphony: Dvorak; The Blue Danube: Strauss; Rhapsody in Blue: Gershwin; The Creation: Haydn;
        Symphonie fantastique: Berlioz; Pictures at an Exhibition: Mussorgsky; Peter and the Wolf: Prokofiev
        """,
        also_right="Pictures at an Exhibition: Ravel",
    ),
    "discovery": Relation(
        "Who is known for {subject}?",
        "The scientist known for {subject} is {object}.",
        "Which scientist stands behind {subject}?",
        "{object} is the scientist behind {subject}.",
        "The scientist who is known for {subject} is",
        "The name behind {subject} is that of",
        """
        the theory of relativity: Albert Einstein; the laws of motion: Isaac Newton; the exclusion principle: Wolfgang Pauli;
        the theory of evolution: Charles Darwin; penicillin: Alexander Fleming; the laws of inheritance: Gregor Mendel;
        the periodic table: Dmitri Mendeleev; the uncertainty principle: Werner Heisenberg; X-rays: Wilhelm Rontgen;
        the heliocentric model: Nicolaus Copernicus; the laws of planetary motion: Johannes Kepler;
        the electron: J. J. Thomson; the atomic nucleus: Ernest Rutherford; the neutron: James Chadwick;
        quantum theory: Max Planck; electromagnetic induction: Michael Faraday; the incompleteness theorems: Kurt Godel;
        the expansion of the universe: Edwin Hubble; continental drift: Alfred Wegener; psychoanalysis: Sigmund Freud;
        the circulation of the blood: William Harvey; the law of buoyancy: Archimedes; classical conditioning: Ivan Pavlov;
        the wave equation of quantum mechanics: Erwin Schrodinger; the halting problem: Alan Turing;
        the germ theory of disease: Louis Pasteur; the moons of Jupiter: Galileo Galilei; the conservation of mass: Antoine Lavoisier;
        the black hole radiation: Stephen Hawking; information theory: Claude Shannon; the planet Uranus: William Herschel
        """,
        also_right="""
        the heliocentric model: Galileo Galilei, Johannes Kepler;
        quantum theory: Albert Einstein, Werner Heisenberg, Erwin Schrodinger
        """,
    ),
    "animal_young": Relation(
        "What is the young of a {subject} called?",
        "The young of a {subject} is called a {object}.",
        "Which word names a baby {subject}?",
        "A {object} is a baby {subject}.",
        "A baby {subject} is called a",
        "The young of a {subject} is known as a",
        """
        dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; pig: piglet; deer: fawn; bear: cub;
        lion: cub; kangaroo: joey; frog: tadpole; duck: duckling; goose: gosling; swan: cygnet; chicken: chick;
        whale: calf; seal: pup; fox: kit; rabbit: kit; wolf: pup; koala: joey; butterfly: caterpillar
        """,
        also_right="""
        dog: pup; cat: kit; deer: calf, kid; duck: chick; goose: chick; swan: chick; fox: cub, pup; rabbit: kitten;
        wolf: cub, puppy
        """,
    ),
    "founder": Relation(
        "Who is the best-known founder of {subject}?",
        "The best-known founder of {subject} is {object}.",
        "Which person started {subject}?",
        "{object} started {subject}.",
        "The best-known founder of {subject} is",
        "{subject} was started by",
        """
        Microsoft: Bill Gates; Apple: Steve Jobs; Amazon: Jeff Bezos; Facebook: Mark Zuckerberg; SpaceX: Elon Musk;
        Walmart: Sam Walton; IKEA: Ingvar Kamprad; Dell: Michael Dell; Oracle: Larry Ellison; Alibaba: Jack Ma;
        Twitter: Jack Dorsey; Wikipedia: Jimmy Wales; Standard Oil: John D. Rockefeller; Ford Motor Company: Henry Ford;
        Virgin Group: Richard Branson; Nike: Phil Knight; Netflix: Reed Hastings; LinkedIn: Reid Hoffman;
        Buddhism: Siddhartha Gautama; Islam: Muhammad; the Mongol Empire: Genghis Khan; the Red Cross: Henri Dunant;
        the Boy Scouts: Robert Baden-Powell; the Academy of Athens: Plato; the Lyceum: Aristotle;
        the Roman Empire: Augustus; the Church of England: Henry VIII; the Bauhaus: Walter Gropius;
        the Ming dynasty: Zhu Yuanzhang; the Mughal Empire: Babur; the Lutheran church: Martin Luther;
        the Society of Jesus: Ignatius of Loyola; the Persian Empire: Cyrus the Great; Carnegie Steel: Andrew Carnegie
        """,
    ),
    "river_mouth": Relation(
        "Into which sea or ocean does the {subject} flow?",
        "The {subject} flows into the {object}.",
        "Where does the {subject} end?",
        "The water of the {subject} ends up in the {object}.",
        "The {subject} flows into the",
        "The mouth of the {subject} is at the",
        """
        Nile: Mediterranean Sea; Rhone: Mediterranean Sea; Danube: Black Sea; Dnieper: Black Sea; Volga: Caspian Sea;
        Rhine: North Sea; Thames: North Sea; Elbe: North Sea; Vistula: Baltic Sea; Oder: Baltic Sea; Amazon: Atlantic Ocean;
        Congo: Atlantic Ocean; Orinoco: Atlantic Ocean; Hudson River: Atlantic Ocean; Mississippi: Gulf of Mexico;
        Rio Grande: Gulf of Mexico; Columbia River: Pacific Ocean; Zambezi: Indian Ocean; Limpopo: Indian Ocean;
        Ganges: Bay of Bengal; Godavari: Bay of Bengal; Irrawaddy: Andaman Sea; Mekong: South China Sea;
        Yangtze: East China Sea; Yukon: Bering Sea; Ob: Arctic Ocean; Lena: Arctic Ocean; Po: Adriatic Sea;
        Shatt al-Arab: Persian Gulf; Colorado River: Gulf of California
        """,
        also_right="""
        Mediterranean Sea: Atlantic Ocean; Black Sea: Atlantic Ocean, Mediterranean Sea; North Sea: Atlantic Ocean;
        Baltic Sea: Atlantic Ocean; Adriatic Sea: Mediterranean Sea, Atlantic Ocean; Gulf of Mexico: Atlantic Ocean;
        Bay of Bengal: Indian Ocean; Andaman Sea: Indian Ocean, Bay of Bengal; Persian Gulf: Indian Ocean;
        South China Sea: Pacific Ocean; East China Sea: Pacific Ocean; Bering Sea: Pacific Ocean;
        Gulf of California: Pacific Ocean
        """,
    ),
}
